"""`ignore.toml`, in which users write what is to be left out of keys, beside the journal.

It is read once, when the cache is opened, and never written.
"""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Collection
from pathlib import Path

from sglang_cached_addon.core import ignore_rules
from sglang_cached_addon.core.ignoring import Ignoring, Rule
from sglang_cached_addon.store.files import IGNORE, StoreError

logger = logging.getLogger(__name__)


def ignoring(
    given: Collection[Rule], folder: Path | None, apis: Collection[str]
) -> Ignoring | None:
    """The rules that were given, and those of a folder; None where there are none. `apis` are the
    names of those that generate. Raises ValueError, which says what is wrong, and `StoreError`."""
    rules = [*given, *(_read(folder / IGNORE, apis) if folder else ())]
    return Ignoring(ignore_rules.unique(rules), time.thread_time, _Late()) if rules else None


def _read(path: Path, apis: Collection[str]) -> tuple[Rule, ...]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ()
    except OSError as e:
        raise StoreError(f"cannot read {path}: {e.strerror}") from e
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    try:
        return ignore_rules.of_file(tomllib.loads(text), apis)
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


class _Late:
    """Tells people of each rule that has once taken too long."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, rule: Rule) -> None:
        if rule.name not in self._told:
            self._told.add(rule.name)
            logger.warning(
                "sglang-cached: the ignore rule %s took too long for a call, which keeps its own "
                "key: have it match less often, or something simpler",
                rule.name,
            )

"""What is known of upstream, as it outlives the process.

Reads what an earlier process has written, and refuses what none has; writes what is new on a thread
of its own, one document at a time. Knows nothing of who upstream is, but how that is written.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.cache import Document
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.upstream.single import Following

logger = logging.getLogger("sglang_cached_addon")

MAX_OPEN = 100
"""Routes and models that are remembered as open to everybody."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of upstream."""

    url: str = ""
    identity: Identity | None = None
    incarnation: str | None = None
    """The incarnation of the process that has last named itself."""
    open: frozenset[Asker] = frozenset()
    """What upstream lets everybody ask."""
    epochs: Epochs = field(default_factory=Epochs)
    is_unsettled: bool = False
    """A request has changed the model, or may, and what it leaves behind has no number yet."""
    names: dict[str, str] = field(default_factory=dict)
    """The names of models, by fingerprint."""

    @classmethod
    def read(cls, document: dict[str, Any]) -> Facts:
        """Raises ValueError for what no process has written."""
        url = document.get("url", "")
        unsettled, names = document.get("unsettled", False), document.get("models", {})
        found = _identity(document.get("identity"))
        # A former version did not write it by itself.
        incarnation = document.get("incarnation", found.incarnation if found else None)
        if not isinstance(url, str):
            raise ValueError("'url' is no text")
        if not isinstance(incarnation, str | None):
            raise ValueError("'incarnation' is no text")
        if not isinstance(unsettled, bool):
            raise ValueError("'unsettled' is neither true nor false")
        if not _is_texts(names):
            raise ValueError("'models' is no object of texts")
        epochs = Epochs.from_json(document["epochs"]) if "epochs" in document else Epochs()
        open_askers = _open(document.get("open", []))
        return cls(url, found, incarnation, open_askers, epochs, unsettled, names)

    def as_json(self) -> dict[str, Any]:
        """The document that `read` reads."""
        return {
            "url": self.url,
            "identity": asdict(self.identity) if self.identity else None,
            "incarnation": self.incarnation,
            "open": [list(asker)[1:4] for asker in sorted(self.open)[:MAX_OPEN]],
            "epochs": self.epochs.as_json(),
            "unsettled": self.is_unsettled,
            "models": dict(self.names),
        }


def _identity(value: Any) -> Identity | None:
    if value is None:
        return None
    names = {one.name for one in fields(Identity)}
    # Those that have a default may be missing: a former version did not write them.
    needed = {one.name for one in fields(Identity) if one.default is MISSING}
    if not isinstance(value, dict) or not needed <= value.keys() <= names:
        raise ValueError("'identity' has not the members of an identity")
    flags = {one.name for one in fields(Identity) if type(one.default) is bool}
    is_typed = all(type(value[name]) is bool for name in flags & value.keys())
    is_typed = is_typed and isinstance(value["weight_version"], str | None)
    if not is_typed or not _is_texts({**value, "weight_version": "", **dict.fromkeys(flags, "")}):
        raise ValueError("'identity' has a member that is no text")
    return Identity(**value)


def _open(value: Any) -> frozenset[Asker]:
    if not isinstance(value, list):
        raise ValueError("'open' is no list")
    for one in value:
        is_asker = isinstance(one, list) and len(one) == 3
        if not is_asker or not all(isinstance(text, str) for text in one):
            raise ValueError("'open' has a member that is not a method, a path and a model")
    return frozenset(Asker(b"", *one) for one in value)


def _is_texts(value: Any) -> bool:
    """Whether this is an object of texts."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


class FactsWriter:
    """Writes down what is known."""

    def __init__(self, document: Document, facts: Callable[[], Facts]) -> None:
        """`facts` gives what is known by then."""
        self._document = document
        self._facts = facts
        self._writing: Following[None] = Following()
        self._saving = threading.Lock()
        self._saved: dict[str, Any] | None = None
        """What was written last."""
        self._is_closed = False
        """Whether the last document was written: one that still waits for its thread is older."""

    def remember(self) -> asyncio.Future[None]:
        """Writes what is known by then; done when the disk has it, or refuses it."""
        return self._writing.join(self._write)

    async def _write(self) -> None:
        await asyncio.to_thread(self._save, self._facts().as_json())

    def _save(self, facts: dict[str, Any], *, is_last: bool = False) -> None:
        with self._saving:
            if self._is_closed:
                return
            self._is_closed = is_last
            try:
                self._document.save(facts)
                self._saved = facts
            except OSError as e:
                logger.warning("sglang-cached: %s", e)

    def close(self) -> None:
        """Writes what is not yet."""
        is_written = not self._writing.is_busy
        self._writing.cancel()
        facts = self._facts().as_json()
        if not is_written or self._saved not in (None, facts):
            self._save(facts, is_last=True)

"""`state.json`, a small JSON document beside the journal: what is known of the upstream.

Written whole or not at all. Synchronous: for threads. Does not know what is in the document; there
are no secrets in it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import orjson

from sglang_cached_addon.store.files import StoreError, replace

logger = logging.getLogger(__name__)


class StateFile:
    """The document of one folder."""

    def __init__(self, folder: Path, *, is_ours: bool = True) -> None:
        """A folder that is not ours is only read."""
        self._is_ours = is_ours
        self.path = folder / "state.json"
        self._document: dict[str, Any] | None = None
        """The document as it is in the file; None if it was neither read nor written."""
        self.is_rejected = False
        """Whether there was a document that made no sense, so that what it said is lost."""

    def load(self) -> dict[str, Any]:
        """Returns the document, or an empty one if there is none. A file that is no JSON object is
        moved aside. Raises `StoreError` where the disk fails."""
        try:
            data = self.path.read_bytes()
            try:
                value = orjson.loads(data)
                if not isinstance(value, dict):
                    raise ValueError("not an object")
            except ValueError as e:
                self.reject(str(e))
                return {}
        except FileNotFoundError:
            return {}
        except OSError as e:
            raise StoreError(f"cannot read {self.path}: {e.strerror}") from e
        self._document = value
        return value

    def reject(self, why: str) -> None:
        """Moves a file aside whose document makes no sense, and logs why and where to. Raises
        `StoreError` where the disk fails."""
        self._document, self.is_rejected = None, True
        if not self._is_ours:
            logger.warning("%s: %s; not used", self.path, why)
            return
        aside = self.path.with_suffix(".json.broken")
        try:
            self.path.replace(aside)
        except FileNotFoundError:
            return
        except OSError as e:
            raise StoreError(f"cannot move {self.path} aside: {e.strerror}") from e
        logger.warning("%s: %s; moved to %s", self.path, why, aside.name)

    def save(self, document: dict[str, Any]) -> None:
        """Replaces the document. Raises `StoreError`, and then the former one is still there. Not
        for two threads at once."""
        if not self._is_ours:
            return
        data = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        try:
            replace(self.path, data)
        except OSError as e:
            raise StoreError(f"cannot write {self.path}: {e.strerror}") from e
        self._document = document

    def save_again(self) -> None:
        """Writes the document again, if somebody has removed the file."""
        if self._document is not None and not self.path.exists():
            self.save(self._document)

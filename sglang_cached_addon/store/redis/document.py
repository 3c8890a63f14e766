"""The document of the upstream, with what the shared store has to remember beside it.

So that a folder hears of what was cleared and replaced while it was closed. The epochs in the
document are raised to those of the server when it is read, and told to the server when it is
written. Synchronous: for threads, but for `load`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sglang_cached_addon.core.cache import Document
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.store.redis import clears

logger = logging.getLogger("sglang_cached_addon")

_SHARED = "shared"
"""The member of the document that is the shared store's."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What others did and what is done here, too."""

    clears: dict[str, int] = field(default_factory=dict)
    """The number of the last clear of each kind."""
    replaced: str = ""
    """The id of the last replacement in the server's stream."""
    untold: list[str] = field(default_factory=list)
    """The kinds of clears that the server has not heard of."""

    @classmethod
    def read(cls, value: Any) -> Heard:
        """Raises ValueError for anything that was not written here."""
        match value:
            case {"clears": dict(numbers), "replaced": str(replaced)}:
                untold = value.get("untold", [])  # a former version had none
                for kind in (*numbers, *untold):
                    clears.meaning(kind)
                for number in numbers.values():
                    if type(number) is not int or number < 0:
                        raise ValueError(f"{_SHARED}: a number that is none of 0 or more")
                return cls(numbers, replaced, untold)
        raise ValueError(f"{_SHARED}: does not say what was cleared and replaced")


class SharedDocument:
    """A `Document` of a shared store, kept in that of its local one."""

    def __init__(
        self,
        local: Document,
        read_epochs: Callable[[], Mapping[str, int]],
        publish: Callable[[], object],
    ) -> None:
        """`read_epochs` and `publish` read the server's epochs, and tell it of ours, in bounded
        time."""
        self.known: Heard | None = None
        """What was heard of; None if nothing is known."""
        self._local, self._read_epochs, self._publish = local, read_epochs, publish
        self._document: dict[str, Any] = {}
        self._writing = threading.Lock()

    def load(self) -> dict[str, Any]:
        document = self._local.load()
        epochs = Epochs()
        try:
            if _SHARED in document:
                self.known = Heard.read(document.pop(_SHARED))
            if "epochs" in document:
                epochs = Epochs.from_json(document["epochs"])
        except ValueError as e:
            self.reject(str(e))
            document = {}
        self._document = document
        if theirs := self._read_epochs():
            epochs.merge({}, theirs)
            document["epochs"] = epochs.as_json()
        return document

    @property
    def is_rejected(self) -> bool:
        return self._local.is_rejected

    def reject(self, why: str) -> None:
        self.known, self._document = None, {}
        self._local.reject(why)

    def save(self, document: dict[str, Any]) -> None:
        try:
            self._save(document)
        finally:
            self._publish()

    def note(self) -> bool:
        """Writes down what is known by now; False, and a line in the log, if the disk refuses."""
        try:
            self._save(None)
        except OSError as e:
            logger.warning("sglang-cached: %s", e)
            return False
        return True

    def _save(self, document: dict[str, Any] | None) -> None:
        with self._writing:
            if document is not None:
                self._document = document
            shared = {_SHARED: asdict(self.known)} if self.known else {}
            self._local.save({**self._document, **shared})

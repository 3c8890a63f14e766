"""Which model is behind the URL, as far as it is known, and what outlives the process of that.

Keeps the identity that upstream has last given, and the epochs of all models and adapters. Its
`version` is a number of this process that rises whenever the model may have been another one in
between: what was asked of one version is not stored for another.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Protocol

from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.core.policy import Restart
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream.changes import Update
from sglang_cached_addon.upstream.single import Following

logger = logging.getLogger("sglang_cached_addon")

MODELS = 1000
"""Names of models that are kept."""

MAX_OPEN = 100
"""Routes and models that are remembered as open to everybody."""


class Memory(Protocol):
    """Where what is known outlives the process."""

    def load(self) -> dict[str, Any]: ...

    def save(self, document: dict[str, Any]) -> None: ...

    @property
    def is_rejected(self) -> bool:
        """Whether what was there was lost, as it made no sense."""

    def reject(self, why: str) -> None:
        """What was loaded makes no sense: it is moved aside, and people are told."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What an earlier process has written down."""

    url: str = ""
    identity: Identity | None = None
    incarnation: str | None = None
    open: frozenset[Asker] = frozenset()
    epochs: Epochs = field(default_factory=Epochs)
    is_unsettled: bool = False
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, document: dict[str, Any]) -> _Known:
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


def _identity(value: Any) -> Identity | None:
    if value is None:
        return None
    names = {one.name for one in fields(Identity)}
    # Those that have a default may be missing: a former version did not write them.
    needed = {one.name for one in fields(Identity) if one.default is MISSING}
    if not isinstance(value, dict) or not needed <= value.keys() <= names:
        raise ValueError("'identity' has not the members of an identity")
    version, streams_usage = value["weight_version"], value.get("streams_usage", False)
    is_typed = isinstance(version, str | None) and type(streams_usage) is bool
    if not is_typed or not _is_texts({**value, "weight_version": "", "streams_usage": ""}):
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


class Model:
    """Who answers."""

    def __init__(
        self,
        url: str,
        memory: Memory,
        *,
        is_offline: bool,
        restart: Restart,
        salt: int,
        entered: Callable[[], object],
    ) -> None:
        """`entered` is told whenever the model is, or may be, another one. `salt` as `Epochs` has
        it. Offline, the identity of another URL will do."""
        self.identity: Identity | None = None
        self.epochs = Epochs(salt=salt)
        self.version = 0
        """Rises whenever the model may have been another one in between."""
        self.names: dict[str, str] = {}
        """The names of all models that were met, by fingerprint."""
        self.open: frozenset[Asker] = frozenset()
        """What upstream lets everybody ask."""
        self._url = url
        self._memory = memory
        self._restart = restart
        self._entered = entered
        self._incarnation: str | None = None
        """Of the process that has last named itself, whatever else has answered since; None: none
        ever has."""
        self._is_unsettled = False
        """A request has changed the model, and what it left behind has no number yet."""
        self._renumbered: str | None = None
        """The model that has got a number since, if any."""
        self._coming = 0
        """Requests under way that may change the model."""
        self._has_told_restart = False
        self._writing: Following[None] = Following()
        self._saving = threading.Lock()
        self._saved: dict[str, Any] | None = None
        """What was written down last."""
        self._recall(is_offline, salt)

    @property
    def fingerprint(self) -> str:
        """Of the model, as far as it is known; part of each key."""
        return self.epochs.fingerprint(self.identity) if self.identity else ""

    # What upstream says

    def named(self, found: Identity) -> bool:
        """Upstream has said who it is. Whether it is another process than before."""
        before, self.identity = self.identity, found
        is_restarted = self._incarnation not in (None, found.incarnation)
        self._incarnation = found.incarnation
        if is_restarted:
            self._restarted(found)
        is_new = self._settle(found)
        if before != found or is_new:
            self.enter()
            self.remember()
        return is_restarted

    def _settle(self, found: Identity) -> bool:
        """Gives a number to what a request has left behind, now that it has a name. Whether that is
        news."""
        if not self._is_unsettled:
            return False
        self._is_unsettled = False
        if found.digest == self._renumbered:
            self.remember()
            return False
        self.epochs.raise_model(found.digest)
        return True

    def _restarted(self, found: Identity) -> None:
        self.epochs.restarted(found)
        if self._restart is Restart.NEW:
            self.epochs.raise_model(found.digest)
        elif not self._has_told_restart:
            self._has_told_restart = True
            logger.info(
                "sglang-cached: the server was restarted, and says that it has the same model: "
                "stored answers go on being given. If it may have other weights under the same "
                "name, start with --restart new."
            )

    def unnamed(self) -> None:
        """Upstream does not say who it is any more."""
        if self.identity:
            self.identity = None
            self.enter()

    # What is changed

    def announced(self) -> asyncio.Future[None]:
        """A request that may change the model begins. Done when that is on disk: after a process
        that is killed meanwhile, nobody knows what came of it."""
        self._coming += 1
        return self.remember()

    def without_effect(self) -> None:
        """Such a request has ended, and changed nothing."""
        self._coming -= 1
        if not self._coming:
            self.remember()

    def changed(self, update: Update) -> bool:
        """Such a request was carried out, or may have been. Whether the model may have another name
        by that."""
        self._coming -= 1
        is_adapter = update.change is Change.ADAPTER and update.adapter is not None
        if is_adapter:
            self.epochs.raise_adapter(update.adapter or "")
        else:
            self._change()
        self.enter()
        self.remember()
        return not is_adapter

    def _change(self) -> None:
        self._renumbered = self.identity.digest if self.identity else None
        if self._renumbered:
            self.epochs.raise_model(self._renumbered)
        # A model that is there under another name gets a number, too, once that is known.
        self._is_unsettled = True

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> bool:
        """Takes the epochs that other proxies have raised, as `Epochs.merge`. Whether the model is
        another one by that."""
        before = self.fingerprint, self.epochs.adapters_token
        if not self.epochs.merge(known, theirs):
            return False
        is_another = before != (self.fingerprint, self.epochs.adapters_token)
        if is_another:
            self.enter()
        self.remember()
        return is_another

    def opened(self, askers: frozenset[Asker]) -> None:
        """Upstream lets everybody ask this, and nothing else as far as it is known."""
        self.open = askers
        self.remember()

    def enter(self) -> None:
        """The model is, or may be, another one from now on."""
        self.version += 1
        if self.identity:
            self.names[self.fingerprint] = self.identity.model
            while len(self.names) > MODELS:
                del self.names[next(iter(self.names))]
        self._entered()

    # What outlives the process

    def remember(self) -> asyncio.Future[None]:
        """Writes down what is known; done when the disk has it, or refuses it."""
        return self._writing.join(self._write)

    async def _write(self) -> None:
        await asyncio.to_thread(self._save, self._document())

    def _save(self, document: dict[str, Any]) -> None:
        with self._saving:
            try:
                self._memory.save(document)
                self._saved = document
            except OSError as e:
                logger.warning("sglang-cached: %s", e)

    def _document(self) -> dict[str, Any]:
        found = self.identity
        return {
            "url": self._url,
            "identity": asdict(found) if found else None,
            "incarnation": self._incarnation,
            "open": [list(asker)[1:4] for asker in sorted(self.open)[:MAX_OPEN]],
            "epochs": self.epochs.as_json(),
            "unsettled": self._is_unsettled or self._coming > 0,
            "models": dict(self.names),
        }

    def _recall(self, is_offline: bool, salt: int) -> None:
        document = self._memory.load()
        try:
            known = _Known.read(document)
        except ValueError as e:
            self._memory.reject(str(e))
            known = _Known()
        if self._memory.is_rejected:
            # The epochs that were given are lost. One that was never given keeps what was stored
            # before from being taken for answers of the present weights.
            known.epochs.last = known.epochs.floor = max(known.epochs.last, int(time.time()))
            logger.warning(
                "sglang-cached: which weights the stored answers are of is not known any more; "
                "they are not given, and the cache begins anew"
            )
        self._is_unsettled = known.is_unsettled
        self.epochs = replace(known.epochs, salt=salt)
        self.names = known.names
        if known.identity and (is_offline or known.url == self._url):
            self.identity = known.identity
            self.open = known.open
        # Another URL may lead to the same process.
        self._incarnation = known.incarnation
        self._has_told_restart = known.url not in ("", self._url)
        if self._is_unsettled and self.identity:
            self._change()

    def close(self) -> None:
        """Writes down what is not yet."""
        is_written = not self._writing.is_busy
        self._writing.cancel()
        document = self._document()
        if not is_written or (self._saved is not None and document != self._saved):
            self._save(document)

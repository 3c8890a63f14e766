"""Which model is behind the URL, as far as it is known.

Keeps the identity that upstream has last given, and the epochs of all models and adapters. Its
`version` is a number of this process that rises whenever the model may have been another one in
between: what was asked of one version is not stored for another. What is new is written down
(`facts`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.cache import Document
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.core.policy import Restart
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream.changes import Update
from sglang_cached_addon.upstream.facts import Facts, FactsWriter

logger = logging.getLogger("sglang_cached_addon")

MODELS = 1000
"""How many names of models are kept."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """The model was changed, and what is there now gets a number as soon as it has a name."""

    renumbered: str | None
    """The digest of the model that has got one already, if any."""


class Model:
    """Who answers."""

    def __init__(
        self,
        url: str,
        document: Document,
        *,
        is_offline: bool,
        restart: Restart,
        salt: int,
        entered: Callable[[], object],
    ) -> None:
        """`entered` is told whenever the model is, or may be, another one. `salt` as `Epochs` has
        it. Offline, the identity of another URL will do."""
        facts = _recalled(document)
        self.identity: Identity | None = None
        self.epochs = replace(facts.epochs, salt=salt)
        self.version = 0
        """Rises whenever the model may have been another one in between."""
        self.names = facts.names
        """The names of all models that were met, by fingerprint."""
        self.open: frozenset[Asker] = frozenset()
        """What upstream lets everybody ask."""
        if facts.identity and (is_offline or facts.url == url):
            self.identity, self.open = facts.identity, facts.open
        self._url = url
        self._restart = restart
        self._entered = entered
        self._incarnation = facts.incarnation  # another URL may lead to the same process
        """The incarnation of the process that has last named itself, whatever else has answered
        since; None where none ever has."""
        self._unsettled: Unsettled | None = None
        self._coming = 0
        """How many requests are under way that may change the model."""
        self._has_told_restart = facts.url not in ("", url)
        self._writer = FactsWriter(document, self._facts)
        if facts.is_unsettled:
            self._change()

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model, which is part of each key; empty where it is not known."""
        return self.epochs.fingerprint(self.identity) if self.identity else ""

    # What upstream says

    def named(self, found: Identity) -> bool:
        """Notes who upstream says that it is. Returns whether it is another process than before."""
        before, self.identity = self.identity, found
        is_restarted = self._incarnation not in (None, found.incarnation)
        self._incarnation = found.incarnation
        if is_restarted:
            self._restarted(found)
        is_new = self._settle(found)
        if before != found or is_new:
            self.enter()
            self._writer.remember()
        return is_restarted

    def _settle(self, found: Identity) -> bool:
        """Gives a number to what a change has left behind, now that it has a name. Returns whether
        that model is another one than the change was thought to leave."""
        if self._unsettled is None:
            return False
        is_new = found.digest != self._unsettled.renumbered
        self._unsettled = None
        if is_new:
            self.epochs.raise_model(found.digest)
        else:
            self._writer.remember()
        return is_new

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
        return self._writer.remember()

    def without_effect(self) -> None:
        """Such a request has ended, and changed nothing."""
        self._coming -= 1
        if not self._coming:
            self._writer.remember()

    def changed(self, update: Update) -> bool:
        """Such a request was carried out, or may have been. Returns whether the model may have
        another name by that."""
        self._coming -= 1
        is_adapter = update.change is Change.ADAPTER and update.adapter is not None
        if is_adapter:
            self.epochs.raise_adapter(update.adapter or "")
        else:
            self._change()
        self.enter()
        self._writer.remember()
        return not is_adapter

    def _change(self) -> None:
        renumbered = self.identity.digest if self.identity else None
        if renumbered:
            self.epochs.raise_model(renumbered)
        # A model that is there under another name gets a number, too, once that is known.
        self._unsettled = Unsettled(renumbered)

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> bool:
        """Takes the epochs that other proxies have raised, as `Epochs.merge`. Returns whether the
        model is another one by that."""
        before, adapters = self.fingerprint, self.epochs.adapters_token
        if not self.epochs.merge(known, theirs):
            return False
        if self.identity and before != self.fingerprint:
            # Another model may be in its place, and its own number come later than its name.
            self._unsettled = Unsettled(self.identity.digest)
        is_another = (before, adapters) != (self.fingerprint, self.epochs.adapters_token)
        if is_another:
            self.enter()
        self._writer.remember()
        return is_another

    def opened(self, askers: frozenset[Asker]) -> None:
        """Upstream lets everybody ask this, and nothing else as far as it is known."""
        self.open = askers
        self._writer.remember()

    def enter(self) -> None:
        """The model is, or may be, another one from now on."""
        self.version += 1
        if self.identity:
            self.names[self.fingerprint] = self.identity.model
            while len(self.names) > MODELS:
                del self.names[next(iter(self.names))]
        self._entered()

    # What outlives the process

    def _facts(self) -> Facts:
        is_unsettled = self._unsettled is not None or self._coming > 0
        return Facts(
            self._url,
            self.identity,
            self._incarnation,
            self.open,
            self.epochs,
            is_unsettled,
            self.names,
        )

    def close(self) -> None:
        """Writes down what is not yet."""
        self._writer.close()


def _recalled(document: Document) -> Facts:
    """What an earlier process has written."""
    try:
        facts = Facts.read(document.load())
    except ValueError as e:
        document.reject(str(e))
        facts = Facts()
    if document.is_rejected:
        # The epochs that were given are lost. One that was never given keeps what was stored
        # before from being taken for answers of the present weights.
        facts.epochs.last = facts.epochs.floor = max(facts.epochs.last, int(time.time()))
        logger.warning(
            "sglang-cached: which weights the stored answers are of is not known any more; "
            "they are not given, and the cache begins anew"
        )
    return facts

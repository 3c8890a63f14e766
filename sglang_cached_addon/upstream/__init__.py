"""Who is behind the URL, whether it answers, and whom it lets ask.

Puts the modules beside it together: how upstream is asked who it is (`inquiry`), which
model that makes (`model`), which requests change it (`changes`), whether an answer is of it
(`confirming`), and whom it accepts (`gate`). Upstream is asked beside the calls: while there are
some, for ten minutes after the last one, and after each answer that is to be stored.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.cache import Document
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.core.policy import Reason, Restart
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream.asking import Questions, Verdict
from sglang_cached_addon.upstream.belief import Trust
from sglang_cached_addon.upstream.changes import Ending, Update, Updates
from sglang_cached_addon.upstream.confirming import Confirming, Greeting
from sglang_cached_addon.upstream.gate import Gate, Probes
from sglang_cached_addon.upstream.inquiry import FIRST_SECONDS, Health, Inquiry
from sglang_cached_addon.upstream.model import Model
from sglang_cached_addon.upstream.single import within
from sglang_cached_addon.wire.client import Broken, Client, Headers, Unreachable

__all__ = ["Health", "Update", "Upstream"]

INTERVAL_SECONDS = 5.0
"""How long what upstream said of its model is believed before it is asked again."""


class Upstream:
    """The server that misses go to."""

    def __init__(
        self,
        url: str,
        document: Document,
        *,
        tls: ssl.SSLContext | None = None,
        keeps_host: bool = False,
        interval: float = INTERVAL_SECONDS,
        is_offline: bool = False,
        restart: Restart = Restart.SAME,
        salt: int = 0,
        entered: Callable[[Upstream], object] = lambda upstream: None,
        probes: Probes = lambda asker: (),
    ) -> None:
        """`entered` and `salt` are as `Model` has them, `probes` as `Gate`."""
        self.url = url
        self._is_offline = is_offline
        self._updates = Updates(self._updated)
        self._model = Model(
            url,
            document,
            is_offline=is_offline,
            restart=restart,
            salt=salt,
            entered=lambda: entered(self),
        )
        self._gate = Gate(Client(url, tls=tls), probes, self._model.opened)
        for asker in self._model.open:
            self._gate.admission.recall(asker)
        self._inquiry = Inquiry(
            Questions(url, tls), self._model, self._gate, interval, is_offline=is_offline
        )
        self._confirming = Confirming(self._inquiry, self._model, self._updates)
        self.client = Client(
            url,
            tls=tls,
            keeps_host=keeps_host,
            greet=self._confirming.greet,
            is_lasting=self._confirming.is_lasting,
        )
        """The client that asks upstream for anything but its identity."""
        self._model.enter()

    # What is known

    @property
    def identity(self) -> Identity | None:
        return self._model.identity

    @property
    def epochs(self) -> Epochs:
        return self._model.epochs

    @property
    def model_version(self) -> int:
        """A number that rises whenever the model may have been another one in between."""
        return self._model.version

    @property
    def models(self) -> dict[str, str]:
        """The names of all models that were met, by fingerprint."""
        return self._model.names

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model, as `Model` has it."""
        return self._model.fingerprint

    @property
    def asks_keys(self) -> bool | None:
        """Whether upstream lets only some credentials ask; None where that is not known."""
        return self._gate.asks_keys

    @property
    def health(self) -> Health:
        """Whether upstream answers, as far as it is known."""
        return self._inquiry.health

    def look(self, now: float) -> Health:
        """Whether upstream answered when it was last asked; if that is old, it is asked again, and
        nobody waits for it."""
        return self._inquiry.look(now)

    async def check(self) -> Health:
        """Whether upstream answers when it is asked now; that is not waited for long."""
        return await self._inquiry.check()

    def seen(self, is_up: bool) -> None:
        """Notes whether a call has reached upstream."""
        self._inquiry.health = Health.UP if is_up else Health.DOWN

    # Who may be answered from the store

    def admits(self, asker: Asker, now: float) -> bool:
        """Whether an asker can be given what is stored; nothing is waited for. `now` is monotonic,
        in seconds."""
        if self._is_offline:
            return True
        self._inquiry.keep(now)
        return self._inquiry.belief.trust(now) is Trust.BELIEVED and self._accepts(asker, now)

    def _accepts(self, asker: Asker, now: float) -> bool:
        is_down = self.health is Health.DOWN
        return self._gate.admission.admits(asker, now, is_down=is_down)

    async def admit(
        self, asker: Asker, credential_headers: Headers, routing_headers: Headers = ()
    ) -> Reason | None:
        """Asks upstream what `admits` does not know; why a call is to be left to it, if it is. The
        headers are those that the asker's credential and its routing are made of."""
        now = time.monotonic()
        trust = self._inquiry.belief.trust(now)
        if trust is Trust.WAKING:
            # Its former word will do; it only gets the chance to say something else.
            await within(self._inquiry.belief.patience(now), self._inquiry.poll())
        elif trust is Trust.UNKNOWN:
            verdict = await self._inquiry.learn(credential_headers)
            if self._inquiry.belief.trust(time.monotonic()) is Trust.UNKNOWN:
                is_refused = verdict is Verdict.REFUSED
                return Reason.UNAUTHORIZED if is_refused else Reason.NO_MODEL
        if not self._accepts(asker, time.monotonic()):
            await self._gate.tries(asker, (*credential_headers, *routing_headers))
        return None if self._accepts(asker, time.monotonic()) else Reason.UNAUTHORIZED

    def heard(self, asker: Asker, headers: Headers, status: int, now: float) -> None:
        """Notes the status of upstream's answer to a client's call; `headers` as `Gate` has it."""
        self.seen(True)
        self._gate.heard(asker, headers, status, now)

    # Answers that are to be stored

    def watch(self, credential_headers: Headers) -> None:
        """A fetch begins: as `Confirming.watch`."""
        if not self._is_offline:
            self._confirming.watch(credential_headers)

    async def confirm(
        self,
        model_version: int,
        credential_headers: Headers,
        greeting: asyncio.Future[Greeting | None] | None = None,
    ) -> Reason | None:
        """Why an answer that has come must not be stored, as `Confirming.confirm`."""
        return await self._confirming.confirm(model_version, credential_headers, greeting)

    def doubt(self) -> None:
        """Something showed that upstream may be another one."""
        self._inquiry.doubt()

    # Requests that change the model

    def change(self, change: Change, adapter: str | None) -> Update:
        """A request that may change the model is about to be passed on. The `Update` is to be told
        how far that request has come."""
        return self._updates.begin(change, adapter, self._model.announced())

    def _updated(self, update: Update, what: Ending) -> None:
        if what is Ending.WITHOUT_EFFECT:
            self._model.without_effect()
            return
        if self._model.changed(update):
            self._inquiry.belief.doubted(time.monotonic())
        self.doubt()

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> None:
        """Takes the epochs that other proxies have raised, as `Epochs.merge`."""
        if self._model.adopt(known, theirs):
            # It may have another name by now.
            self._inquiry.belief.doubted(time.monotonic())
            self.doubt()

    async def post(self, path: str, body: bytes, fields: Headers) -> None:
        """Sends a request whose answer nobody waits for; failures are upstream's to log."""
        with suppress(Unreachable, Broken):
            await within(FIRST_SECONDS, self.client.ask("POST", path, fields, body))

    def close(self) -> None:
        """Hangs up."""
        self._inquiry.close()
        self._confirming.close()
        self._model.close()
        self._gate.close()
        self.client.close()

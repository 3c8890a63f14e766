"""Who is behind the URL, whether it answers, and whom it lets ask.

Puts the modules beside it together: how upstream is asked who it is (`inquiry`), which
model that makes (`model`), which requests change it (`changes`), whether an answer is of it
(`confirming`), and whom it accepts (`gate`). Upstream is asked beside the calls: while there are
some, for ten minutes after the last one, and after each answer that is to be stored.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.cache import Document
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.policy import Reason, Restart
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream.asking import Questions, Verdict
from sglang_cached_addon.upstream.belief import Trust
from sglang_cached_addon.upstream.changes import Ending, Update, Updates
from sglang_cached_addon.upstream.confirming import Confirming
from sglang_cached_addon.upstream.gate import Gate, Probes
from sglang_cached_addon.upstream.inquiry import FIRST_SECONDS, Health, Inquiry
from sglang_cached_addon.upstream.model import Model
from sglang_cached_addon.upstream.single import within
from sglang_cached_addon.wire.client import Client, Unreachable
from sglang_cached_addon.wire.connection import Broken, Headers
from sglang_cached_addon.wire.observing import Observer, Sender

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
        observer: Observer | None = None,
    ) -> None:
        """`entered` and `salt` are as `Model` has them, `probes` as `Gate`; the `observer` sees
        what is sent."""
        self.url = url
        self.observer = observer
        self._updates = Updates(self._updated)
        self.model = Model(
            url,
            document,
            is_offline=is_offline,
            restart=restart,
            salt=salt,
            entered=lambda: entered(self),
        )
        self.gate = Gate(Client(url, tls=tls, observer=observer), probes, self.model.opened)
        for asker in self.model.open:
            self.gate.admission.recall(asker)
        self.inquiry = Inquiry(
            Questions(url, tls, observer), self.model, self.gate, interval, is_offline=is_offline
        )
        self.confirming = Confirming(self.inquiry, self.model, self._updates)
        self.client = Client(
            url,
            tls=tls,
            keeps_host=keeps_host,
            greet=self.confirming.greet,
            is_lasting=self.confirming.is_lasting,
            observer=observer,
        )
        """The client that asks upstream for anything but its identity."""
        self.model.enter()

    @property
    def epochs(self) -> Epochs:
        """The epochs of all models and adapters, which proxies with one store share."""
        return self.model.epochs

    def sender(self, caption: Callable[[], str]) -> Sender:
        """What sends a call; the observer sees that, with the caption."""
        if self.observer and self.observer.is_there:
            return self.observer.around(self.client, caption())
        return self.client

    def seen(self, is_up: bool) -> None:
        """Notes whether a call has reached upstream."""
        self.inquiry.health = Health.UP if is_up else Health.DOWN

    # Who may be answered from the store

    def admits(self, asker: Asker, now: float) -> bool:
        """Whether an asker can be given what is stored; nothing is waited for. `now` is monotonic,
        in seconds."""
        if self.inquiry.is_offline:
            return True
        self.inquiry.keep(now)
        return self.inquiry.belief.trust(now) is Trust.BELIEVED and self._accepts(asker, now)

    def _accepts(self, asker: Asker, now: float) -> bool:
        is_down = self.inquiry.health is Health.DOWN
        return self.gate.admission.admits(asker, now, is_down=is_down)

    async def admit(
        self, asker: Asker, credential_headers: Headers, routing_headers: Headers = ()
    ) -> Reason | None:
        """Asks upstream what `admits` does not know; why a call is to be left to it, if it is. The
        headers are those that the asker's credential and its routing are made of."""
        now = time.monotonic()
        trust = self.inquiry.belief.trust(now)
        if trust is Trust.WAKING:
            # Its former word will do; it only gets the chance to say something else.
            await within(self.inquiry.belief.patience(now), self.inquiry.poll())
        elif trust is Trust.UNKNOWN:
            verdict = await self.inquiry.learn(credential_headers)
            if self.inquiry.belief.trust(time.monotonic()) is Trust.UNKNOWN:
                is_refused = verdict is Verdict.REFUSED
                return Reason.UNAUTHORIZED if is_refused else Reason.NO_MODEL
        if not self._accepts(asker, time.monotonic()):
            await self.gate.tries(asker, (*credential_headers, *routing_headers))
        return None if self._accepts(asker, time.monotonic()) else Reason.UNAUTHORIZED

    def heard(self, asker: Asker, headers: Headers, status: int, now: float) -> None:
        """Notes the status of upstream's answer to a client's call; `headers` as `Gate` has it."""
        self.seen(True)
        self.gate.heard(asker, headers, status, now)

    # Requests that change the model

    def change(self, change: Change, adapter: str | None) -> Update:
        """A request that may change the model is about to be passed on. The `Update` is to be told
        how far that request has come."""
        return self._updates.begin(change, adapter, self.model.announced())

    def _updated(self, update: Update, what: Ending) -> None:
        if what is Ending.WITHOUT_EFFECT:
            self.model.without_effect()
            return
        if self.model.changed(update):
            self.inquiry.belief.doubted(time.monotonic())
        self.inquiry.doubt()

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> None:
        """Takes the epochs that other proxies have raised, as `Epochs.merge`."""
        if self.model.adopt(known, theirs):
            # It may have another name by now.
            self.inquiry.belief.doubted(time.monotonic())
            self.inquiry.doubt()

    async def post(self, path: str, body: bytes, fields: Headers) -> None:
        """Sends a request whose answer nobody waits for; failures are upstream's to log."""
        with suppress(Unreachable, Broken):
            await within(FIRST_SECONDS, self.client.ask("POST", path, fields, body))

    def close(self) -> None:
        """Hangs up."""
        self.inquiry.close()
        self.confirming.close()
        self.model.close()
        self.gate.close()
        self.client.close()

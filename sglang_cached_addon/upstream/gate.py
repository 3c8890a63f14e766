"""Whom upstream lets ask: shows it credentials, and keeps what it says to them.

An asker is accepted by a 200 on its own route and for its own model: to its own call, or to a
probe, the smallest call that the route's API has. One that shows no credential is accepted by
a probe alone, which carries nothing of any client but the headers that are part of the asker:
what a client sends besides may be a credential that we do not know as one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from sglang_cached_addon.core.admission import Admission, Asker, Probe
from sglang_cached_addon.upstream.asking import REFUSALS
from sglang_cached_addon.upstream.single import Single, within
from sglang_cached_addon.wire.client import Client, Unreachable
from sglang_cached_addon.wire.connection import Broken, Headers

logger = logging.getLogger("sglang_cached_addon")

Probes = Callable[[Asker], Sequence[Probe]]
"""The smallest calls of an asker's route, the mildest first. A status other than 200, 401 and 403
says nothing, and then the next one is tried."""

PROBE_SECONDS = 2.0
"""How long a call waits to learn whether its asker is accepted."""

RENEW_SECONDS = 120.0
"""How long upstream may take for a probe for which no call waits."""

REST_SECONDS = 1.0
"""For how many seconds an asker that was not accepted is not tried again: its calls go upstream
themselves."""

MAX_RESTING = 10_000
"""How many such askers are remembered; when there are more, all are forgotten."""

MAX_SHOWN = 256
"""How many credentials are kept, in memory, to be shown again; the oldest goes first."""

_JSON = (b"Content-Type", b"application/json")


class Gate:
    """The askers that upstream accepts."""

    def __init__(
        self,
        client: Client,
        probes: Probes,
        opened: Callable[[frozenset[Asker]], object] = lambda askers: None,
    ) -> None:
        """`client` is for this alone. `opened` is told what is open to everybody, whenever that is
        something else."""
        self.admission = Admission()
        self.asks_keys: bool | None = None
        """Whether upstream answers only those who show a credential; None: not known yet."""
        self._client = client
        self._probes = probes
        self._opened = opened
        self._probing: dict[Asker, Single[None]] = {}
        self._resting: dict[Asker, float] = {}
        """When an asker that was not accepted may be tried again: a monotonic time in seconds."""
        self._headers: dict[tuple[bytes, bytes], Headers] = {}
        """The header fields of accepted askers, by the credential and the routing that are made of
        them."""
        self._has_hinted = False

    def heard(self, asker: Asker, headers: Headers, status: int, now: float) -> None:
        """Notes upstream's answer to a call of this asker. Here and below, `headers` are the header
        fields that its credential and its routing are made of."""
        if status in REFUSALS:
            self._refuse(asker, status)
        elif status == 200 and asker.credential and asker.model is not None:
            self._accept(asker, headers, now)

    @property
    def latest(self) -> Headers:
        """The header fields of the credential that was accepted last; none if there is none."""
        kept = reversed(self._headers.items())
        return next((headers for (_, routing), headers in kept if not routing), ())

    async def tries(self, asker: Asker, headers: Headers, seconds: float = PROBE_SECONDS) -> None:
        """Asks upstream about an asker, if that was not just done; returns after so long at the
        latest, while the question goes on."""
        if time.monotonic() < self._resting.get(asker, 0.0):
            return
        await within(seconds, self._probe(asker, headers))

    def renew(self, now: float) -> None:
        """Asks again about those who asked lately, beside their calls."""
        for asker in self.admission.due(now):
            headers = self._headers.get((asker.credential, asker.routing))
            is_askable = headers is not None or _is_anybody(asker)
            if is_askable and now >= self._resting.get(asker, 0.0):
                self._probe(asker, headers or ())

    def _probe(self, asker: Asker, headers: Headers) -> asyncio.Future[None]:
        """Upstream's word on an asker; those who want it at the same time share it."""
        single = self._probing.setdefault(asker, Single())
        return single.join(lambda: self._ask(asker, headers))

    async def _ask(self, asker: Asker, headers: Headers) -> None:
        self.admission.renewing(asker, is_asked=True)
        status: int | None = None
        try:
            async with asyncio.timeout(RENEW_SECONDS):
                status = await self._status(asker, headers)
        except (Unreachable, Broken, TimeoutError):
            pass
        finally:
            self.admission.renewing(asker, is_asked=False)
            self._probing.pop(asker, None)
        now = time.monotonic()
        if status == 200:
            self._accept(asker, headers, now)
            return
        if status in REFUSALS:
            self._refuse(asker, status)
            self._hint(asker)
        if len(self._resting) >= MAX_RESTING:
            self._resting.clear()
        self._resting[asker] = now + REST_SECONDS

    async def _status(self, asker: Asker, headers: Headers) -> int:
        status = 0
        for body, own in self._probes(asker):
            fields = (*headers, *own, _JSON)
            status = (await self._client.ask(asker.method, asker.path, fields, body)).status
            if status == 200 or status in REFUSALS:
                break
        return status

    def _accept(self, asker: Asker, headers: Headers, now: float) -> None:
        is_new = asker not in self.admission
        self.admission.accept(asker, now)
        self._resting.pop(asker, None)
        if _is_anybody(asker):
            self.asks_keys = False
            if is_new:
                self._opened(self.admission.open)
            return
        self._headers.pop((asker.credential, asker.routing), None)
        self._headers[asker.credential, asker.routing] = headers
        if len(self._headers) > MAX_SHOWN:
            del self._headers[next(iter(self._headers))]

    def _refuse(self, asker: Asker, status: int) -> None:
        is_news = asker in self.admission
        self.admission.refuse(asker, status)
        if status == 401:
            for known in [known for known in self._headers if known[0] == asker.credential]:
                if asker.credential or known[1] == asker.routing:
                    del self._headers[known]
        if _is_anybody(asker):
            self.asks_keys = True
            if is_news:
                self._opened(self.admission.open)

    def _hint(self, asker: Asker) -> None:
        """Logs once what may be wrong where a client shows no credential."""
        if not asker.credential and not self._has_hinted:
            self._has_hinted = True
            logger.info(
                "sglang-cached: the server refuses calls without a credential. If clients show "
                "theirs in another header than Authorization or X-Api-Key, name it with "
                "--credential-header."
            )

    def forget_all(self) -> None:
        """Another process may answer now."""
        self.admission.forget_all()
        self._resting.clear()
        self.asks_keys = None

    def close(self) -> None:
        """Hangs up."""
        self._client.close()
        for single in tuple(self._probing.values()):
            single.cancel()


def _is_anybody(asker: Asker) -> bool:
    """Whether it shows nothing of itself, so that what it may ask everybody may."""
    return not (asker.credential or asker.routing)

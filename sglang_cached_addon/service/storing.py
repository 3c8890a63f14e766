"""What fetches have brought, on its way into the store.

It is stored when upstream has confirmed that it still is the same model, in the order in which it
came, and a piece at a time. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from sglang_cached_addon.core.call_head import Fields
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import Fetch
from sglang_cached_addon.service.flight import Flight
from sglang_cached_addon.service.flights import Flights
from sglang_cached_addon.service.pauses import pausing
from sglang_cached_addon.upstream import Upstream

logger = logging.getLogger("sglang_cached_addon")

STORE_SECONDS = 0.002
"""How long others wait while something large is stored."""


@dataclass(frozen=True, slots=True)
class Storing:
    """Stores what fetches have brought."""

    exchange: Exchange
    upstream: Upstream
    flights: Flights
    _turns: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who goes on in the loop's next turn, so that many large answers do not add up."""

    async def keep(self, fetch: Fetch, flight: Flight, credential_headers: Fields) -> None:
        """Stores what a fetch has brought, if upstream still is the model that it was."""
        if flight.refusal is Reason.OTHER_WEIGHTS:
            self.upstream.inquiry.doubt()
        if flight.refusal or not flight.answer.samples:
            return
        version, confirming = fetch.stamp.model_version, self.upstream.confirming
        reason = await confirming.confirm(version, credential_headers, flight.greeting)
        reason = reason or await self.flights.turn(flight)
        reason = reason or await self._store(fetch, flight)
        if reason:
            flight.dropped = reason
            self.exchange.counters.not_stored[reason] += 1
            logger.info("sglang-cached: an answer was not stored (%s)", reason)

    async def _store(self, fetch: Fetch, flight: Flight) -> Reason | None:
        """Stores what is kept, and lets others have their turn where it is much; why it is not, or
        not all of it."""
        if self._turns.locked():
            await self._turn()
        begun, pause = time.monotonic(), pausing()
        for addition, reason in self.exchange.store(fetch, flight.answer.samples):
            if reason:
                return reason
            self.flights.stored(flight, addition)
            if time.monotonic() > begun + STORE_SECONDS:
                pause()
                # Who only waits for hits does not wait for the disk, but this does.
                while room := self.exchange.room():
                    await room
                await self._turn()
                begun = time.monotonic()
        return None

    async def _turn(self) -> None:
        """Waits for a turn of the loop in which nothing else that is large is stored."""
        async with self._turns:
            await asyncio.sleep(0)

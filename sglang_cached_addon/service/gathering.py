"""Equal calls of a run come together: one fetches for all that wait at the same moment.

Knows asyncio, and who waits; what is fetched for them, `sharing` decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.service.claims import Claim, View, lacks_of
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.flight import Flight
from sglang_cached_addon.service.flights import Flights
from sglang_cached_addon.service.lookup import Lookup


@dataclass(frozen=True, slots=True)
class Gathering:
    """How equal calls of a run come together."""

    seconds: float = 0.005
    """How long the first one waits for others."""
    most: int = 64
    """How many samples of a prompt are fetched in one go for them."""

    async def others(self, flights: Flights, claim: Claim, keys: Collection[bytes]) -> Others:
        """Waits a moment for equal calls of the same run, and keeps them waiting meanwhile: those
        that have come."""
        flight = Flight(keys)
        flights.begin(flight, alone=False)
        try:
            with flights.wanted(flight):
                await asyncio.sleep(self.seconds)
                claims = [each for each in flights.drawers(keys) if isinstance(each, Claim)]
                return Others(claim, claims, self.most)
        finally:
            flights.end(flight)


@dataclass(frozen=True, slots=True)
class Others:
    """Calls of a run for which another one fetches, too."""

    claim: Claim
    """What that one has."""
    claims: Sequence[Claim]
    most: int

    def lacks(self, keys: Collection[bytes]) -> dict[bytes, int]:
        """How many samples of these pools are fetched for them."""
        own, lacks = self.claim.lacks(), lacks_of(self.claims, self.claim)
        room = {key: min(lacks.get(key, 0), max(0, self.most - own[key])) for key in own}
        return {key: lack for key, lack in room.items() if lack and key in keys}


def view_of(lookup: Lookup, flights: Flights, known: Known) -> View:
    """Gives the samples of a pool of that call which are at hand: those that are stored, and those
    that others have just brought."""
    stamp = lookup.stamp(known)

    def view(key: bytes) -> Sequence[Sample]:
        stored = lookup.pool(key)
        if flights.any_landed:
            return [*stored, *flights.brought(key, stamp, is_first=not stored)]
        return stored

    return view

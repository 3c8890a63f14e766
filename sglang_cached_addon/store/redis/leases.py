"""Leases: the right to fill pools, which one proxy has at a time, and waiting for those of others.

A lease is a key of the server that ends by itself within seconds of its proxy's death; a proxy that
lives prolongs it. Whoever finds one taken waits until it is told that the lease is free, or looks
again after `LOOK_SECONDS`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence

from sglang_cached_addon.store.redis.outbox import Outbox
from sglang_cached_addon.store.redis.protocol import Command, lease_of, release

LEASE_SECONDS, RENEW_SECONDS = 5.0, 1.5
"""How long a lease lasts, and how often it is prolonged."""

LOOK_SECONDS = 1.0
"""How often a proxy that waits for another one looks by itself."""

MILLISECONDS = int(LEASE_SECONDS * 1000)


class SharedLease:
    """The right to fill some pools: see `cache.Lease`."""

    def __init__(self, leases: Leases, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.token = secrets.token_hex(8)
        self._leases = leases

    def release(self) -> None:
        self._leases.release(self)


class Leases:
    """The leases of one proxy, and its waits for those of others."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._held: set[SharedLease] = set()
        self._waits: dict[asyncio.Future[None], frozenset[bytes]] = {}
        """The calls that wait, each with the keys whose leases others have."""

    @property
    def count(self) -> int:
        """How many pools are to be filled here."""
        return sum(len(lease.keys) for lease in self._held)

    @property
    def waiting(self) -> int:
        """How many calls wait for other proxies."""
        return len(self._waits)

    def hold(self, lease: SharedLease) -> None:
        """Prolongs a lease from now on."""
        self._held.add(lease)

    def release(self, lease: SharedLease, keys: Iterable[bytes] | None = None) -> None:
        """Frees pools of a lease: all, if no others are given. Returns at once."""
        self._held.discard(lease)
        for key in lease.keys if keys is None else keys:
            self._outbox.tell(release(key, lease.token))

    def retakes(self) -> list[Command]:
        """What takes the leases again that the server has lost."""
        held = ((lease, key) for lease in self._held for key in lease.keys)
        return [
            ("SET", lease_of(key), lease.token, "NX", "PX", MILLISECONDS) for lease, key in held
        ]

    def prolong(self) -> None:
        """Prolongs all leases. In the order of the other writes, so that what was released is not
        taken again."""
        for take in self.retakes():
            self._outbox.tell(take)
            self._outbox.tell(("PEXPIRE", take[1], MILLISECONDS))

    async def wait(self, keys: Iterable[bytes]) -> None:
        """Returns when another proxy has freed one of these, or it is time to look."""
        freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waits[freed] = frozenset(keys)
        try:
            await asyncio.wait((freed,), timeout=LOOK_SECONDS)
        finally:
            del self._waits[freed]

    def freed(self, key: bytes | None = None) -> None:
        """Wakes the calls that wait for a key; all, if none is given."""
        for woken, keys in self._waits.items():
            if not woken.done() and (key is None or key in keys):
                woken.set_result(None)

"""Bringing what a call lacks: from the server, or by the right to fetch it from upstream.

A call reads the pools that are too small. Where the server has no more, the call takes their
leases, all or none; where other proxies have leases, it waits for them and reads again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping

from sglang_cached_addon.core.cache import Brought
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.redis.leases import MILLISECONDS, SharedLease
from sglang_cached_addon.store.redis.link import Link
from sglang_cached_addon.store.redis.pools import Look, SharedPools
from sglang_cached_addon.store.redis.protocol import look
from sglang_cached_addon.store.redis.server import Away

WAIT_SECONDS = 600.0
"""How long a call waits for another proxy, which prolongs its lease meanwhile."""

REREADS = 2
"""How often a call makes a pool agree with the server's before it goes on without it."""

YIELD_SECONDS = 0.02
"""Up to so long a call that got only some of the leases waits before it tries again."""


class Bringing:
    """What calls of one proxy bring."""

    def __init__(
        self, local: OpenStore, link: Link, pools: SharedPools, is_usable: Callable[[], bool]
    ) -> None:
        """`is_usable` tells whether what the server has may be read."""
        self._local, self._pools, self._is_usable = local, pools, is_usable
        self._outbox, self._leases = link.outbox, link.leases

    async def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Brought:
        """As `cache.Store.bring`."""
        deadline = time.monotonic() + WAIT_SECONDS
        has_waited, rereads = False, 0
        while self._is_usable() and time.monotonic() < deadline:
            short = {
                key: need
                for key, need in sorted(needs.items())
                if need > len(self._local.get(key)) and self._pools.is_usable(key)
            }
            if not short:
                return Brought(is_shared=has_waited)
            lease, clears = SharedLease(self._leases, tuple(short)), self._local.clears
            try:
                looks = await self._look(short, lease, claims=claims)
                claimed = [one.key for one in looks if one.status == "claimed"]
                if clears != self._local.clears:
                    self._leases.release(lease, claimed)
                    break
                if odd := [one.key for one in looks if not self._pools.fits(one)]:
                    self._leases.release(lease, claimed)
                    rereads += 1
                    for key in odd:
                        await self._pools.agree(key)
                    if rereads > REREADS:
                        break
                    continue
            except Away:
                break
            is_late = any(len(self._local.get(one.key)) != one.have for one in looks)
            has_more = sum(map(self._pools.take, looks)) > 0
            if len(claimed) == len(short) and not has_more:
                self._leases.hold(lease)
                return Brought(lease)
            self._leases.release(lease, claimed)
            if has_more:
                return Brought(is_shared=has_waited)
            if is_late:  # it was read as it was before more came by another way
                continue
            busy = [one.key for one in looks if one.status == "busy"]
            if not busy:
                return Brought()
            has_waited = True
            if claimed:  # lest two calls take and give back the same leases for ever
                await asyncio.sleep(random.uniform(0, YIELD_SECONDS))
            await self._leases.wait(busy)
        return Brought()

    async def _look(
        self, short: Mapping[bytes, int], lease: SharedLease, *, claims: bool
    ) -> list[Look]:
        """Reads what is short, and claims it where there is no more; raises `Away`."""
        haves = {key: len(self._local.get(key)) for key in short}
        token = lease.token if claims else ""
        commands = [
            look(self._pools.list_of(key), key, haves[key], need, token, MILLISECONDS)
            for key, need in short.items()
        ]
        looking = asyncio.gather(*(self._outbox.ask(*command) for command in commands))
        try:
            answers = await asyncio.shield(looking)
        except asyncio.CancelledError:  # what is claimed by then is nobody's
            looking.add_done_callback(lambda _: self._leases.release(lease))
            raise
        looks = []
        for key, answer in zip(short, answers, strict=True):
            if isinstance(answer, Exception):
                self._pools.spoil(key, str(answer))
            else:
                status, size, found = answer
                looks.append(Look(key, haves[key], status.decode(), size, found))
        return looks

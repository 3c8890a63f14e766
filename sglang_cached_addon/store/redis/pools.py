"""Pools on the server, and the same pools at hand: each is the beginning of the other.

What the server has more is taken, and what it has less is put there. Where the two differ, because
two proxies did not know of each other, the server's samples replace those at hand. A pool that
cannot be read is left alone, and served from what is at hand. The order of writes is the outbox's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from math import inf

from sglang_cached_addon.core.cache import SKEW, Addition, Sample, slots
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.redis import element
from sglang_cached_addon.store.redis.clears import Clears
from sglang_cached_addon.store.redis.link import Link
from sglang_cached_addon.store.redis.outbox import Write
from sglang_cached_addon.store.redis.protocol import Command, Result, list_of, put
from sglang_cached_addon.store.redis.server import Away, CommandRefused

logger = logging.getLogger("sglang_cached_addon")

MAX_ELEMENT = 16 << 20
"""Bytes of a sample that is shared."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the server says of a pool."""

    key: bytes
    have: int
    """The samples that were at hand when it was asked."""
    status: str
    """As `protocol.look` has it."""
    size: int
    """The samples that the server has."""
    found: list[bytes]
    """Its elements, from the last one that is at hand on."""


class SharedPools:
    """The pools of one proxy and of the server."""

    def __init__(self, local: OpenStore, link: Link, clears: Callable[[], Clears]) -> None:
        self._local, self._link, self._clears = local, link, clears
        self._outbox, self._leases = link.outbox, link.leases
        self._unusable: set[bytes] = set()
        """Keys of pools that cannot be read, or are too large to be shared."""

    def list_of(self, key: bytes) -> bytes:
        """The name of a pool's list as it is now."""
        return list_of(key, self._clears().of(key))

    # Reading

    def fits(self, look: Look) -> bool:
        """Whether the pool at hand is the beginning of the server's, as far as can be told."""
        mine = self._local.get(look.key)
        if not look.have or len(mine) < look.have or self._outbox.waits(look.key):
            return True
        if look.size < look.have:
            return False
        return element.name(look.found[0]) == _name(mine[look.have - 1])

    def take(self, look: Look) -> bool:
        """Adds what the server has more to what is at hand; whether there was any."""
        samples = self._read(look.key, look.found[1:] if look.have else look.found)
        # What has come meanwhile, by another way, is not to be there twice.
        if not samples or len(self._local.get(look.key)) != look.have:
            return False
        self._keep(look.key, samples)
        return True

    def _read(self, key: bytes, elements: Iterable[bytes]) -> list[tuple[str, Sample]]:
        """The samples that have not expired, with their APIs; those that have are removed from the
        server. Empty if any cannot be read."""
        try:
            found = [(one, *element.decode(one)) for one in elements]
        except ValueError as e:
            self.spoil(key, str(e))
            return []
        samples = []
        for one, dialect, sample in found:
            if self._local.is_expired(sample.stored_at):
                self._outbox.tell(("LREM", self.list_of(key), 1, one))
            else:
                samples.append((dialect, sample))
        return samples

    def _keep(self, key: bytes, found: Iterable[tuple[str, Sample]]) -> None:
        for dialect, group in groupby(found, lambda one: one[0]):
            self._local.append(Addition(key, dialect, b"null", [sample for _, sample in group]))

    async def look(self, key: bytes) -> list[Sample]:
        """The samples of a pool on the server, which stays as it is; raises `Away`."""
        answer = await self._outbox.ask("LRANGE", self.list_of(key), 0, -1)
        try:
            found = [element.decode(one)[1] for one in answer] if isinstance(answer, list) else []
        except ValueError:
            return []
        return [sample for sample in found if not self._local.is_expired(sample.stored_at)]

    async def agree(self, key: bytes) -> None:
        """Makes the pool at hand agree with the server's; raises `Away`."""
        clears = self._local.clears
        if bringing := self._local.bring({key: 1}, claims=False):
            await bringing
        if not self._local.get(key):
            return
        answer = await self._outbox.ask("LRANGE", self.list_of(key), 0, -1)
        if not isinstance(answer, list) or clears != self._local.clears or self._outbox.waits(key):
            return
        found = self._read(key, answer)
        mine = self._local.get(key)
        if [sample for _, sample in found] == list(mine[: len(found)]):
            if len(found) < len(mine):
                self.push(Addition(key, "", b"", mine[len(found) :]), len(found))
        else:
            self._local.remove(key)
            self._keep(key, found)

    async def _agree_if_it_can(self, key: bytes) -> None:
        with suppress(Away):
            await self.agree(key)

    def spoil(self, key: bytes, why: str) -> None:
        if not self._unusable:
            logger.warning(
                "sglang-cached: %s: a pool cannot be used, and is not: %s: %s",
                self._link.server.name,
                self.list_of(key).decode(),
                why,
            )
        self._unusable.add(key)

    def is_usable(self, key: bytes) -> bool:
        """Whether a pool is shared."""
        return key not in self._unusable

    def forget(self, is_cleared: Callable[[bytes], bool]) -> None:
        """Gives pools that were cleared another chance, and drops what is to be written of them."""
        self._outbox.drop(lambda write: bool(write.key) and is_cleared(write.key))
        self._unusable = {key for key in self._unusable if not is_cleared(key)}

    # Storing

    def push(self, addition: Addition, base: int) -> None:
        """Adds samples to a pool that has `base` of them."""
        if addition.key not in self._unusable:
            self._put(addition, range(base, base + len(addition.samples)), base)

    def replace(self, addition: Addition, before: Sequence[float], now: float) -> bool:
        """Puts samples into the places of those that do not count; False if they are not shared.
        `before` says when the samples were stored that were at hand."""
        key = addition.key
        if key in self._unusable:  # from now on the pool is what is at hand
            self._unusable.discard(key)
            self._outbox.tell(("DEL", self.list_of(key)))
            mine = self._local.get(key)
            return self._put(Addition(key, addition.dialect, b"", mine), range(len(mine)))
        places = slots(before, len(addition.samples), addition.since, now)
        return self._put(addition, places, now=now + SKEW)

    def _put(
        self, addition: Addition, places: Sequence[int], base: int = 0, now: float = inf
    ) -> bool:
        key = addition.key
        elements = [element.encode(addition.dialect, sample) for sample in addition.samples]
        if max(map(len, elements), default=0) > MAX_ELEMENT:
            self.spoil(key, "a sample is too large to be shared")
            return False
        size = sum(map(len, elements))

        def done(result: Result) -> None:
            if isinstance(result, CommandRefused):
                self.spoil(key, str(result))
            elif result != list(places):  # the pools differ
                self._link.spawn(self._agree_if_it_can(key))

        def command() -> Command:
            return put(self.list_of(key), elements, base, addition.since, now)

        return self._outbox.queue(Write(command, key, size, done))


def _name(sample: Sample) -> bytes:
    return element.name(element.encode("", sample))

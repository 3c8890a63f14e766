"""The runs that several proxies share: those that are used here, and all that the server has."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Any

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.places import Used, marks, pool_of
from sglang_cached_addon.store.redis.outbox import Outbox
from sglang_cached_addon.store.redis.places import NAMES, is_held, keys_of, shown
from sglang_cached_addon.store.redis.protocol import Result
from sglang_cached_addon.store.redis.run import SharedRun
from sglang_cached_addon.store.redis.server import Away

logger = logging.getLogger("sglang_cached_addon")

PATIENCE_SECONDS = 3.0
"""How long a call for which there is something stored waits for a server that has gone away."""

PRUNE_SECONDS = 60.0
"""How often it is looked which runs are over."""


class SharedRuns:
    """All runs."""

    def __init__(self, outbox: Outbox, server: str, ttl: float = inf) -> None:
        """`server` is what people call it. A run that was not used for `ttl` seconds is
        forgotten."""
        self._outbox = outbox
        self._ttl = ttl
        self._proxy = secrets.token_hex(4)
        self._server = server
        self._runs: dict[str, SharedRun] = {}
        self._pruned_at = -inf
        self._lost_at = time.monotonic()
        self._is_back = asyncio.Event()
        self._is_said = False
        """Whether it is in the log that nobody knows what is taken."""

    async def _is_known(self, waits: bool) -> bool:
        """Whether the server can say what is taken; people are told what happens where not."""
        left = self._lost_at + PATIENCE_SECONDS - time.monotonic()
        if waits and left > 0 and not self._outbox.is_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._is_back.wait()
        if not self._outbox.is_open and not self._is_said:
            self._is_said = True
            logger.warning(
                "sglang-cached: %s: it is not known which samples the runs have; "
                "their calls are generated anew until it is back",
                self._server,
            )
        return self._outbox.is_open

    def use(self, name: str, now: float) -> SharedRun:
        """The run of that name, for a call at this Unix time."""
        if now > self._pruned_at + PRUNE_SECONDS:
            self._pruned_at = now
            runs, since = self._runs.values(), now - self._ttl
            over = [run.name for run in runs if run.is_idle and run.last < since]
            for each in over:
                del self._runs[each]
        run = self._runs[name] = self._get(name)
        run.last = now
        run.calls += 1
        return run

    def _get(self, name: str) -> SharedRun:
        if run := self._runs.get(name):
            return run
        return SharedRun(name, self._proxy, self._ttl, self._outbox, self._is_known)

    # The server

    def renew(self) -> None:
        """As `SharedRun.renew`, of all."""
        for run in self._runs.values():
            run.renew()

    def lost(self) -> None:
        """The server is away."""
        if self._is_back.is_set():
            self._is_back.clear()
            self._lost_at = time.monotonic()

    def resume(self) -> None:
        """The server is back."""
        self._is_said = False
        self._is_back.set()
        for run in self._runs.values():
            run.resume()

    async def _ask(self, *command: Any) -> Result:
        """What the server answers; raises OSError."""
        try:
            answer = await self._outbox.ask(*command)
        except Away as e:
            answer = e
        if isinstance(answer, Exception):
            raise OSError(f"{self._server} has the runs, and does not tell of them: {answer}")
        return answer

    # What people see and change

    async def shown(self) -> list[dict[str, Any]]:
        """What is told of those that are not over, by name."""
        names = await self._names()
        found = await asyncio.gather(*(self.show(name) for name in names))
        over = [name for name, run in zip(names, found, strict=True) if run is None]
        if over:
            self._outbox.tell(("SREM", NAMES, *over))
        return [run for run in found if run]

    async def _names(self) -> list[str]:
        known = {name.decode() for name in await self._ask("SMEMBERS", NAMES)}
        return sorted(known | self._runs.keys())

    async def show(self, name: str) -> dict[str, Any] | None:
        """What is told of a run, if it was ever used."""
        return await self._change(name)

    async def rewind(self, name: str) -> dict[str, Any] | None:
        """As `Run.rewind`."""
        return await self._change(name, "rewind")

    async def begin(self, name: str) -> dict[str, Any] | None:
        """A run that begins behind what is stored now."""
        self._outbox.tell(("SADD", NAMES, name))
        return await self._change(name, "fresh")

    async def delete(self, name: str) -> dict[str, Any] | None:
        """Forgets a run, and gives what it was."""
        return await self._change(name, "delete")

    async def users(self, key: bytes, samples: Sequence[Sample]) -> list[list[str]]:
        """For each sample of a pool the names of the runs to which it was delivered; none, where
        the server does not tell."""
        its = [*marks(pool_of(key), samples)]
        try:
            names = await self._names()
            asked = (self._ask("SMISMEMBER", keys_of(name)[1], *its) for name in names)
            answers = await asyncio.gather(*asked)
        except OSError:
            return [[] for _ in samples]
        found = [[bool(int(has)) for has in each] for each in answers]
        pairs = [(name, has) for name, has in zip(names, found, strict=True) if any(has)]
        return [[name for name, has in pairs if has[at]] for at in range(len(samples))]

    async def free(self, name: str, key: bytes, samples: Sequence[Sample]) -> Sequence[Sample]:
        """As the server has it: what this proxy has to tell goes out before what it asks."""
        its = [*marks(pool_of(key), samples)]
        if not its:
            return ()
        run, taken, held = keys_of(name)
        fresh, has, holders = await asyncio.gather(
            self._ask("HGET", run, "fresh"),
            self._ask("SMISMEMBER", taken, *its),
            self._ask("HMGET", held, *its),
        )
        since, now = float(fresh) if fresh else -inf, time.time()
        said = zip(samples, has, holders, strict=True)
        free = [one for one, is_taken, by in said if not (int(is_taken) or is_held(by, now))]
        return [one for one in free if one.stored_at >= since]

    async def used(self, name: str) -> Used | None:
        """Tells of pools whether any of their samples was delivered to a run."""
        if await self.show(name) is None:
            return None
        taken = frozenset(await self._ask("SMEMBERS", keys_of(name)[1]))

        def has(key: bytes, samples: Sequence[Sample]) -> bool:
            return any(b"%d" % mark in taken for mark in marks(pool_of(key), samples))

        return Used(has)

    def forget(self, key: bytes) -> None:
        """Samples are known by when they were stored, so that others never have their places."""

    async def _change(self, name: str, change: str = "") -> dict[str, Any] | None:
        return shown(name, await self._ask(*self._get(name).show(change)))

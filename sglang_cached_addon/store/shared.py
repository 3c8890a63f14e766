"""Pools that several proxies share, on a Redis or Valkey server.

Memory, or a folder, is the first level: all that is at hand is there, and `get` and `find` never
wait. A pool on the server is a list of `element`s; the pool at hand is its beginning. Who is to
fill a pool has a lease of it, which ends by itself within seconds of its proxy's death. The server
may be slow, full, away, or come back empty: what is at hand is served, what is short comes from
upstream, and what was to be written is, once it is back.

Keys, each with the format's version in front: `{POOL}:N`, the list, where N says how often it was
cleared (see `clears`); `{POOL}:lease`, and `{POOL}:wanted` while others wait for it;
`{all}:control` with the numbers by which proxies see what others have changed, `{all}:replaced` and
`{all}:epochs`. What is in braces says which node of a cluster has the key.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from math import inf
from typing import Any, Protocol

from sglang_cached_addon.core.cache import SKEW, Brought, Sample, counts, slots
from sglang_cached_addon.core.epochs import SPAN, Epochs
from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.store import DiskStore, clears, element
from sglang_cached_addon.store.clears import Clears
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.journal.follower import Follower
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.loading import Loaded
from sglang_cached_addon.store.memory import Memory
from sglang_cached_addon.store.outbox import Outbox, Write
from sglang_cached_addon.store.redis import SECONDS, Away, Command, Full, Refused, Result, Server

logger = logging.getLogger("sglang_cached_addon")

PREFIX = b"sglang-cached:%d:" % FORMAT_VERSION
CHANNEL = PREFIX + b"news"

LEASE_SECONDS, RENEW_SECONDS = 5.0, 1.5
"""How long a lease lasts, and how often it is prolonged."""

POLL_SECONDS = 0.5
"""How often it is looked for what others have changed, should the news of it be lost."""

RETRY_SECONDS = 1.0
"""How long a server that is away is left alone."""

LOOK_SECONDS = 1.0
"""How often who waits for another proxy looks for itself."""

WAIT_SECONDS = 600.0
"""How long a call waits for another proxy, which prolongs its lease meanwhile."""

MAX_ELEMENT = 16 << 20
"""Bytes of a sample that is shared."""

SWEEP = 1000
"""Keys of the server that are looked at in one go."""

REPLACED = 100_000
"""So many pools whose samples were replaced are told to who was not there."""

FOR_EVER = 1e300
"""Seconds: a time that scripts can read, and nothing is of."""

_RELEASED, _CHANGED = b"r", b"c"

# Of each pool: how many samples there are, the name of the one that is where the asker's last one
# should be, whether another has a lease, and the samples that the asker lacks.
_LOOK = """
local more, busy, out = false, false, {''}
for i = 1, #KEYS, 3 do
  local have, need = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local size, last = redis.call('LLEN', KEYS[i]), ''
  local at = math.min(have, size) - 1
  if at >= 0 then
    last = string.match(redis.call('LINDEX', KEYS[i], at), '^%S+ %S+ %S+') or '?'
  end
  local taken = redis.call('EXISTS', KEYS[i + 1])
  if size > have then more = true end
  if taken == 1 then busy = true end
  local new = size > have and redis.call('LRANGE', KEYS[i], have, need - 1) or {}
  out[#out + 1] = {size, last, taken, new}
end
if more or ARGV[2] == '0' then
  out[1] = 'read'
elseif busy then
  for i = 1, #KEYS, 3 do
    if redis.call('EXISTS', KEYS[i + 1]) == 1 then
      redis.pcall('SET', KEYS[i + 2], '1', 'PX', 3000)
    end
  end
  out[1] = 'busy'
else
  out[1] = 'claimed'
  for i = 1, #KEYS, 3 do
    local set = redis.pcall('SET', KEYS[i + 1], ARGV[1], 'PX', ARGV[2])
    if set.err then out[1] = 'full' end
  end
  if out[1] == 'full' then
    for i = 1, #KEYS, 3 do
      if redis.call('GET', KEYS[i + 1]) == ARGV[1] then redis.call('DEL', KEYS[i + 1]) end
    end
  end
end
return out
"""

# Adds to a list, once: what is there already, because the answer to the last attempt was lost, is
# not added again. Tells whether the list was as expected.
_PUSH = """
local function same(one, other)
  return string.match(one, '^%S+ %S+ %S+') == string.match(other, '^%S+ %S+ %S+')
end
local list, base, count = KEYS[1], tonumber(ARGV[1]), #ARGV - 1
local size, there = redis.call('LLEN', list), 0
if size > base then
  local found = redis.call('LRANGE', list, base, base + count - 1)
  while there < #found and same(found[there + 1], ARGV[there + 2]) do there = there + 1 end
end
if there == count then return 1 end
local fits = size == base + there
if not fits then
  there = 0
  local all = redis.call('LRANGE', list, 0, -1)
  for start = 0, #all - count do
    local n = 0
    while n < count and same(all[start + n + 1], ARGV[n + 2]) do n = n + 1 end
    if n == count then return 0 end
  end
end
for i = there + 2, #ARGV do redis.call('RPUSH', list, ARGV[i]) end
return fits and 1 or 0
"""

# Puts samples in the places of those that do not count, and behind the others what is more; once,
# as above. Tells the places.
_REPLACE = """
local list, since, now, places = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), {}
local all, there = redis.call('LRANGE', list, 0, -1), {}
for i, one in ipairs(all) do there[string.match(one, '^%S+ %S+ %S+') or '?'] = i - 1 end
for i = 3, #ARGV do
  local at = there[string.match(ARGV[i], '^%S+ %S+ %S+')]
  if not at then break end
  places[#places + 1] = at
end
if #places == #ARGV - 2 then return places end
places = {}
for i, one in ipairs(all) do
  if #places == #ARGV - 2 then return places end
  local at = tonumber(string.match(one, '^%S+ %S+ (%S+)'))
  if not at or at < since or at > now then
    redis.call('LSET', list, i - 1, ARGV[#places + 3])
    places[#places + 1] = i - 1
  end
end
while #places < #ARGV - 2 do
  places[#places + 1] = redis.call('RPUSH', list, ARGV[#places + 3]) - 1
end
return places
"""

# Takes out what does not count.
_EXPIRE = """
local list, since, now = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local all, kept = redis.call('LRANGE', list, 0, -1), {}
for _, one in ipairs(all) do
  local at = tonumber(string.match(one, '^%S+ %S+ (%S+)'))
  if at and at >= since and at <= now then kept[#kept + 1] = one end
end
if #kept < #all then
  redis.call('DEL', list)
  for _, one in ipairs(kept) do redis.call('RPUSH', list, one) end
end
return #kept
"""

_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  if redis.call('DEL', KEYS[2]) == 1 then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
end
return 1
"""

# One that is gone, because the server came back without it, is taken again.
_RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if holder then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# Tells of pools whose samples were replaced.
_REPLACED = """
local number = redis.call('HINCRBY', KEYS[1], 'replaced', 1)
redis.call('ZADD', KEYS[2], number, ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[3])
redis.call('PUBLISH', ARGV[1], 'c')
return number
"""

_CLEAR = """
local last = math.max(tonumber(redis.call('HGET', KEYS[1], 'last') or 0), tonumber(ARGV[3])) + 1
redis.call('HSET', KEYS[1], 'last', last, ARGV[2], last)
redis.call('PUBLISH', ARGV[1], 'c')
return last
"""

# What somebody knows of clears, for a server that may have lost it.
_JOIN = """
redis.call('HSETNX', KEYS[1], 'boot', ARGV[1])
for i = 2, #ARGV, 2 do
  if tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or 0) < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return redis.call('HGETALL', KEYS[1])
"""

# Each number goes from what all knew to what one has made of it, or to the higher one where another
# was there first.
_EPOCHS = """
local changed = false
for i = 2, #ARGV, 3 do
  local now, new = redis.call('HGET', KEYS[2], ARGV[i]) or '', ARGV[i + 2]
  if now == ARGV[i + 1] or (tonumber(now) or 0) < (tonumber(new) or 0) then
    if new == '' then redis.call('HDEL', KEYS[2], ARGV[i])
    else redis.call('HSET', KEYS[2], ARGV[i], new) end
    changed = true
  end
end
if changed then
  redis.call('HINCRBY', KEYS[1], 'epochs', 1)
  redis.call('PUBLISH', ARGV[1], 'c')
end
return redis.call('HGETALL', KEYS[2])
"""

_CONTROL, _REPLACED_KEY, _EPOCHS_KEY = (
    PREFIX + b"{all}:" + name for name in (b"control", b"replaced", b"epochs")
)


def _run(script: str, keys: Sequence[bytes], *arguments: object) -> Command:
    return ("EVAL", script, len(keys), *keys, *arguments)


class Document(Protocol):
    """As `StateFile`."""

    @property
    def is_rejected(self) -> bool: ...

    def load(self) -> dict[str, Any]: ...

    def reject(self, why: str) -> None: ...

    def save(self, document: dict[str, Any]) -> None: ...


class Holder(Protocol):
    """Who knows the epochs of models."""

    @property
    def epochs(self) -> Epochs: ...

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> None:
        """Others have changed epochs from what was known."""


class Nowhere:
    """A document that nobody keeps."""

    is_rejected = False

    def load(self) -> dict[str, Any]:
        return {}

    def reject(self, why: str) -> None:
        pass

    def save(self, document: dict[str, Any]) -> None:
        pass


class MemoryStore(Memory):
    """A store that ends with the process."""

    journal: Journal | None = None

    def __init__(self, limit: float = inf, ttl: float = inf) -> None:
        """`limit` is in bytes: what does not fit is to be had from the server. `ttl` is of a
        sample, in seconds."""
        super().__init__(limit)
        self.ttl = ttl
        self.state = Nowhere()
        self.loaded = Loaded()

    @property
    def now(self) -> float:
        return time.time()

    def is_expired(self, stored_at: float) -> bool:
        return self.ttl < inf and not counts(stored_at, (now := self.now) - self.ttl, now)

    def get(self, key: bytes) -> Sequence[Sample]:
        if self.ttl < inf:
            self.expire(key, (now := self.now) - self.ttl, now)
        return super().get(key)

    def remove(self, key: bytes) -> None:
        """As `DiskStore.remove`."""
        self.discard(key)

    @property
    def memory(self) -> Memory:
        return self

    @property
    def index(self) -> Memory:
        return self

    def empty(self, model: bytes | None = None, *, others: bool = False) -> Future[None]:
        """As `DiskStore.clear`."""
        self.clear(None if model is None else lambda key: key.startswith(model) is not others)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class Lease:
    """The right to fill some pools: see `cache.Lease`."""

    def __init__(self, store: SharedStore, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.token = secrets.token_hex(8)
        self._store = store

    def release(self) -> None:
        self._store.release(self)


@dataclass(frozen=True, slots=True)
class _Look:
    """What the server says of some pools."""

    status: str
    pools: list[_Pool] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Pool:
    key: bytes
    have: int
    """Samples that were at hand when it was asked for."""
    size: int
    last: bytes
    """Names the server's sample that is where the last one at hand should be."""
    is_busy: bool
    new: list[bytes]


class SharedStore:
    """Pools at hand, and those of a server behind them. Belongs to an event loop, but for its
    `state`."""

    def __init__(self, url: str, local: DiskStore | MemoryStore) -> None:
        """Raises ValueError for a URL that names no server."""
        self._url = url
        self._server = Server(url)
        self.local = local
        self.state = State(self, local.state)
        self.salt = 1 + secrets.randbelow(SPAN - 1)
        """Makes the epochs that this proxy gives its own."""
        self.name = self._server.name
        self.is_up = False
        self._outbox = Outbox(self._server, self._lost)
        self._clears = Clears()
        self._has_joined = False
        """What it knows of clears is true of what is at hand."""
        self._cleared: list[str] = []
        """Kinds of clears that the server has not heard of."""
        self._clearing = 0
        self._replaced = 0
        """Up to this number it has heard of pools whose samples were replaced."""
        self._boot = ""
        """Names the life of the server's data."""
        self._epochs: dict[str, int] = {}
        """As last agreed with the server."""
        self._epochs_number = -1
        self._holder: Holder | None = None
        self._sharing = asyncio.Lock()
        self._leases: set[Lease] = set()
        self._waiters: dict[bytes, set[asyncio.Future[None]]] = {}
        self._unusable: set[bytes] = set()
        self._is_said = False
        self._kick = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._feed: asyncio.Task[None] | None = None

    # What is at hand

    @property
    def memory(self) -> Memory:
        return self.local.memory

    @property
    def journal(self) -> Journal | Follower | None:
        return self.local.journal

    @property
    def index(self) -> Index | Memory:
        """What is stored here."""
        return self.local.index

    @property
    def loaded(self) -> Loaded:
        return self.local.loaded

    @property
    def generation(self) -> int:
        return self.local.generation

    @property
    def clears(self) -> int:
        return self.local.clears

    @property
    def now(self) -> float:
        return self.local.now

    def is_expired(self, stored_at: float) -> bool:
        return self.local.is_expired(stored_at)

    def touch(self, keys: Sequence[bytes]) -> None:
        self.local.touch(keys)

    def get(self, key: bytes) -> Sequence[Sample]:
        return self.local.get(key)

    def find(self, raw: bytes) -> bytes | None:
        return self.local.find(raw)

    def room(self) -> Awaitable[None] | None:
        return self.local.room()

    def has_room(self, size: int) -> bool:
        return self.local.has_room(size)

    @property
    def lost(self) -> int:
        """As `Journal.lost`."""
        return self.journal.lost if self.journal else 0

    def calls(self, limit: int, seconds: float) -> Iterator[tuple[bytes, str, bytes]]:
        """As `DiskStore.calls`."""
        return self.local.calls(limit, seconds) if isinstance(self.local, DiskStore) else iter(())

    def facts(self) -> dict[str, Any]:
        """For people."""
        return {
            "url": self.name,
            "state": "up" if self.is_up else "down",
            "is_full": self._outbox.is_full,
            "pending": len(self._outbox),
            "pending_bytes": self._outbox.bytes,
            "not_shared": self._outbox.dropped,
            "leases": sum(len(lease.keys) for lease in self._leases),
            "waiting": len(set().union(*self._waiters.values())),
            "commands": self._outbox.commands,
            "round_trips": self._server.trips,
        }

    @property
    def unsent(self) -> int:
        """Writes that are about to go out."""
        return len(self._outbox) if self.is_up and not self._outbox.is_full else 0

    # Beginning and end

    def start(self, holder: Holder) -> None:
        """Connects, in the background; `holder` has the epochs."""
        self._loop = asyncio.get_running_loop()
        self._holder = holder
        if known := self.state.known:
            self._clears, self._replaced = Clears(known.clears), known.replaced
            self._has_joined = True
        self._spawn(self._outbox.run())
        self._spawn(self._keep())
        self._spawn(self._renew())

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Hangs up, and closes what is at hand. What was not written is not shared."""
        self._loop = None
        for task in tuple(self._tasks):
            task.cancel()
        self.is_up = False
        with suppress(RuntimeError):  # there may be no loop any more
            self._server.hang_up()
        if isinstance(self.local, DiskStore):
            self.local.close()

    # Names

    def _list(self, key: bytes) -> bytes:
        return b"%b{%b}:%d" % (PREFIX, key.hex().encode(), self._clears.of(key))

    def _lease(self, key: bytes) -> bytes:
        return b"%b{%b}:lease" % (PREFIX, key.hex().encode())

    def _wanted(self, key: bytes) -> bytes:
        return b"%b{%b}:wanted" % (PREFIX, key.hex().encode())

    # Bringing

    @property
    def _is_usable(self) -> bool:
        """Whether what the server has may be read: not before it knows of our clears."""
        return self.is_up and not (self._cleared or self._clearing)

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        local = self.local.bring(needs, claims=claims)
        return self._bring(needs, local, claims=claims) if self._is_usable else local

    async def _bring(
        self, needs: Mapping[bytes, int], local: Awaitable[Brought] | None, *, claims: bool
    ) -> Brought:
        if local:
            await local
        deadline = time.monotonic() + WAIT_SECONDS
        has_waited, rereads = False, 0
        while self._is_usable and time.monotonic() < deadline:
            short = {
                key: need
                for key, need in sorted(needs.items())
                if need > len(self.get(key)) and key not in self._unusable
            }
            if not short:
                return Brought(is_shared=has_waited)
            lease = Lease(self, tuple(short)) if claims else None
            before = self.clears
            try:
                look = await self._look(short, lease)
            except Away:
                break
            if before != self.clears:
                if lease and look.status == "claimed":
                    self.release(lease)
                break
            odd = [pool for pool in look.pools if not self._fits(pool)]
            if odd:
                rereads += 1
                if lease and look.status == "claimed":
                    self.release(lease)
                try:
                    for pool in odd:
                        await self._reread(pool.key)
                except Away:
                    break
                if rereads > 2:
                    break
                continue
            has_more = False
            for pool in look.pools:
                has_more |= self._take(pool)
            if look.status == "claimed" and not has_more:
                return Brought(lease)
            if look.status != "busy":
                return Brought(is_shared=has_waited and has_more)
            has_waited = True
            await self._wait([pool.key for pool in look.pools if pool.is_busy])
        return Brought()

    async def _look(self, short: Mapping[bytes, int], lease: Lease | None) -> _Look:
        """Reads what is short, and claims it if there is no more; raises `Away`."""
        looking = asyncio.ensure_future(self._look_all(short, lease))
        try:
            look = await asyncio.shield(looking)
        except asyncio.CancelledError:
            if lease:
                looking.add_done_callback(lambda _: self.release(lease))
            raise
        if lease and look.status == "claimed":
            self._leases.add(lease)
        return look

    async def _look_all(self, short: Mapping[bytes, int], lease: Lease | None) -> _Look:
        if not self._server.is_cluster:
            return await self._look_at(short, lease)
        # Each pool has its own place. In order, and from the beginning after each wait, so that no
        # two wait for one another.
        pools: list[_Pool] = []
        look = _Look("read")
        for key, need in short.items():
            look = await self._look_at({key: need}, lease)
            pools += look.pools
            if lease and look.status != "claimed":
                if len(pools) > 1:
                    self._let_go(lease, [pool.key for pool in pools[:-1]])
                break
        return _Look(look.status, pools)

    async def _look_at(self, short: Mapping[bytes, int], lease: Lease | None) -> _Look:
        names: list[bytes] = []
        numbers: list[int] = []
        haves = [len(self.get(key)) for key in short]
        for (key, need), have in zip(short.items(), haves, strict=True):
            names += (self._list(key), self._lease(key), self._wanted(key))
            numbers += (have, need, 0)
        claim = (lease.token, int(LEASE_SECONDS * 1000)) if lease else ("", 0)
        if (ttl := self.local.ttl) < inf:  # what has expired here must not come back
            now = self.now
            for name in names[::3]:
                self._tell(_run(_EXPIRE, [name], repr(now - ttl), repr(now + SKEW)))
        answer = await self._outbox.ask(*_run(_LOOK, names, *claim, *numbers))
        if isinstance(answer, Exception):
            for key in short:
                self._spoil(key, str(answer))
            return _Look("read")
        status, *said = answer
        pools = [
            _Pool(key, have, size, last, bool(taken), new)
            for key, have, (size, last, taken, new) in zip(short, haves, said, strict=True)
        ]
        return _Look(status.decode(), pools)

    def _fits(self, pool: _Pool) -> bool:
        """Whether the shorter one of the two lists is the beginning of the other."""
        mine = self.get(pool.key)
        if not pool.last or len(mine) < pool.have or self._outbox.waits(pool.key):
            return True
        return pool.last == element.name(element.encode("", mine[min(pool.have, pool.size) - 1]))

    def _take(self, pool: _Pool) -> bool:
        """Adds what has come to what is at hand, or the other way round; whether there is more at
        hand now."""
        mine = self.get(pool.key)
        if pool.size < pool.have == len(mine):
            if not self._outbox.waits(pool.key):
                self._push(pool.key, "", mine[pool.size :], pool.size)
            return False
        samples = self._read(pool.key, pool.new)
        # What has come meanwhile, by another way, is not to be there twice.
        if not samples or len(mine) != pool.have:
            return False
        self._put(pool.key, samples)
        return True

    def _read(self, key: bytes, elements: Iterable[bytes]) -> list[tuple[str, Sample]]:
        """Samples with their APIs; none if any cannot be read."""
        try:
            return [element.decode(one) for one in elements]
        except ValueError as e:
            self._spoil(key, str(e))
            return []

    def _spoil(self, key: bytes, why: str) -> None:
        if not self._unusable:
            logger.warning(
                "sglang-cached: %s: a pool cannot be used, and is not: %s: %s",
                self.name,
                self._list(key).decode(),
                why,
            )
        self._unusable.add(key)

    def _put(self, key: bytes, found: list[tuple[str, Sample]]) -> None:
        for dialect, group in groupby(found, lambda one: one[0]):
            self.local.append(key, dialect, b"null", [sample for _, sample in group])

    async def _reread(self, key: bytes) -> None:
        """Takes the server's list instead of what is at hand."""
        mine = self.get(key)
        if not mine:
            return
        before = self.clears
        answer = await self._outbox.ask("LRANGE", self._list(key), 0, len(mine) - 1)
        if before != self.clears or not isinstance(answer, list) or self._outbox.waits(key):
            return
        found = self._read(key, answer)
        mine = self.get(key)
        if found and mine and [sample for _, sample in found] != list(mine)[: len(found)]:
            self.local.remove(key)
            self._put(key, found)

    # Waiting for others

    async def _wait(self, keys: Sequence[bytes]) -> None:
        """Returns when another proxy has let go of one of these, or it is time to look."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for key in keys:
            self._waiters.setdefault(key, set()).add(woken)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await woken
        finally:
            for key in keys:
                waiters = self._waiters.get(key, set())
                waiters.discard(woken)
                if not waiters:
                    self._waiters.pop(key, None)

    def _wake(self, key: bytes) -> None:
        for woken in self._waiters.pop(key, ()):
            if not woken.done():
                woken.set_result(None)

    def release(self, lease: Lease) -> None:
        """As `Lease.release`."""
        self._leases.discard(lease)
        self._let_go(lease, lease.keys)

    def _let_go(self, lease: Lease, keys: Iterable[bytes]) -> None:
        for key in keys:
            names = (self._lease(key), self._wanted(key))
            self._tell(_run(_RELEASE, names, lease.token, CHANNEL, _RELEASED + key))

    def _tell(self, command: Command) -> None:
        self._outbox.tell(Write(b"", lambda: command))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if self.is_up and self._leases:
                with suppress(Away):
                    await self._renew_all()

    async def _renew_all(self) -> None:
        milliseconds = int(LEASE_SECONDS * 1000)
        await asyncio.gather(
            *(
                self._outbox.ask(*_run(_RENEW, [self._lease(key)], lease.token, milliseconds))
                for lease in self._leases
                for key in lease.keys
            )
        )

    # Storing

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float = -inf,
    ) -> bool:
        before = [sample.stored_at for sample in self.get(key)] if since > -inf else []
        is_kept = self.local.append(key, dialect, content, samples, raw, since=since)
        if not is_kept:
            return False
        if since == -inf:
            self._push(key, dialect, samples, max(0, len(self.get(key)) - len(samples)))
        elif key in self._unusable:  # from now on it is what is at hand
            self._unusable.discard(key)
            self._tell(("DEL", self._list(key)))
            self._push(key, dialect, self.get(key), 0)
            self._tell_replaced(key)
        else:
            self._replace(key, dialect, samples, before, since)
        return True

    def _push(self, key: bytes, dialect: str, samples: Sequence[Sample], base: int) -> None:
        """Adds samples to a pool of the server that has so many."""
        if key in self._unusable:
            return

        def command(elements: Sequence[bytes]) -> Command:
            return _run(_PUSH, [self._list(key)], base, *elements)

        self._share(key, dialect, samples, command, 1)

    def _replace(
        self,
        key: bytes,
        dialect: str,
        samples: Sequence[Sample],
        before: Sequence[float],
        since: float,
    ) -> None:
        """Puts samples in the places of those that do not count. `before`: when those were stored
        that were at hand."""
        now = self.now
        expected = slots(before, len(samples), since, now)

        def command(elements: Sequence[bytes]) -> Command:
            times = (repr(min(since, FOR_EVER)), repr(now + SKEW))
            return _run(_REPLACE, [self._list(key)], *times, *elements)

        if self._share(key, dialect, samples, command, expected):
            self._tell_replaced(key)

    def _share(
        self,
        key: bytes,
        dialect: str,
        samples: Sequence[Sample],
        command: Callable[[Sequence[bytes]], Command],
        expected: Result,
    ) -> bool:
        """Queues a write of samples; False if there is none. If the answer is not as expected, the
        server's pool is not as the one at hand."""
        elements = [element.encode(dialect, sample) for sample in samples]
        if max(map(len, elements), default=0) > MAX_ELEMENT:
            self._spoil(key, "a sample is too large to be shared")
            return False

        def done(result: Result) -> None:
            if isinstance(result, Refused):
                self._spoil(key, str(result))
            elif result != expected:
                self._spawn(self._quietly(self._reread(key)))

        size = sum(map(len, elements))
        return self._outbox.tell(Write(key, lambda: command(elements), size, done))

    def _tell_replaced(self, key: bytes) -> None:
        names = [_CONTROL, _REPLACED_KEY]
        self._tell(_run(_REPLACED, names, CHANNEL, key.hex(), REPLACED))

    async def _quietly(self, work: Awaitable[Any]) -> None:
        with suppress(Away):
            await work

    # Clearing

    def clear(self, model: bytes | None = None, *, others: bool = False) -> Future[None]:
        """Empties what is at hand now, and the server and the other proxies in their turn; the
        future is done when the server has it. It fails with `OSError` if that is away, and then
        has it before it is read again."""
        kind = clears.field(model, others=others)
        local = self._clear_local(kind)
        self._cleared.append(kind)
        done: Future[None] = Future()
        self._spawn(self._clear_all(local, done))
        return done

    async def _clear_all(self, local: Future[None], done: Future[None]) -> None:
        try:
            await asyncio.wrap_future(local)
            if self.is_up:
                await self._tell_clears()
            if self._cleared:
                raise Away("")
        except Away:
            done.set_exception(
                OSError(
                    f"cleared here, but {self.name} does not answer: it is cleared there, and "
                    "where else it is shared, before it is used again"
                )
            )
        except BaseException as e:
            done.set_exception(e)
        else:
            done.set_result(None)

    def _clear_local(self, kind: str) -> Future[None]:
        model, others = clears.meaning(kind)
        only = Clears({kind: 1})
        self._outbox.drop(lambda write: bool(write.key and only.of(write.key)))
        self._unusable = {key for key in self._unusable if not only.of(key)}
        if isinstance(self.local, DiskStore):
            return self.local.clear(model, others=others)
        return self.local.empty(model, others=others)

    async def _tell_clears(self) -> None:
        """Numbers our clears; raises `Away`."""
        while self._cleared:
            kind = self._cleared.pop(0)
            self._clearing += 1
            try:
                script = _run(_CLEAR, [_CONTROL], CHANNEL, kind, self._clears.last)
                number = await self._outbox.ask(*script)
                if not isinstance(number, int):
                    raise Away(str(number))
            except BaseException:
                self._cleared.insert(0, kind)
                raise
            finally:
                self._clearing -= 1
            # Before what says the same is heard from the server: that came later.
            self._clears.take({kind: number})
            self._note(self._replaced)
            self._spawn(self._quietly(self._sweep()))

    async def _sweep(self) -> None:
        """Removes the lists that were cleared; in a cluster that is left to its eviction."""
        cursor: Any = 0
        while not self._server.is_cluster:
            match = PREFIX + b"{*}:[0-9]*"
            answer = await self._outbox.ask("SCAN", cursor, "MATCH", match, "COUNT", SWEEP)
            if isinstance(answer, Exception):
                return
            cursor, names = answer
            gone = [name for name in names if self._is_gone(name)]
            if gone:
                await self._outbox.ask("UNLINK", *gone)
            if not int(cursor):
                return

    def _is_gone(self, name: bytes) -> bool:
        """Whether a list is one that nobody reads any more."""
        pool, _, number = name.removeprefix(PREFIX + b"{").partition(b"}:")
        try:
            return int(number) < self._clears.of(bytes.fromhex(pool.decode()))
        except ValueError:
            return False

    # What others have changed

    def _lost(self, why: str) -> None:
        if self.is_up or not self._is_said:
            logger.warning(
                "sglang-cached: %s: %s; answers are not shared until it is back", self.name, why
            )
        self.is_up, self._is_said = False, True
        if self._feed:
            self._feed.cancel()
        for key in tuple(self._waiters):
            self._wake(key)

    async def _keep(self) -> None:
        """Keeps up with the server, and finds it again."""
        while True:
            self._kick.clear()
            try:
                if self.is_up:
                    await self._sync()
                else:
                    await self._join()
            except Away as e:
                self._lost(str(e))
            except Exception:
                logger.exception("sglang-cached: an error while keeping up with %s", self.name)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS if self.is_up else RETRY_SECONDS):
                    await self._kick.wait()

    async def _join(self) -> None:
        """Tells a server that was away what it may have missed, and takes what it has; raises
        `Away`."""
        known = [part for pair in self._clears.numbers.items() for part in pair]
        last = ("last", self._clears.last) if known else ()
        script = _run(_JOIN, [_CONTROL], secrets.token_hex(8), *known, *last)
        control = _numbers(await self._outbox.ask(*script))
        if control.get("boot") != self._boot:
            self._boot = str(control.get("boot"))
            self._epochs, self._epochs_number = {}, -1
            self._replaced = min(self._replaced, _number(control, "replaced"))
        await self._follow(control)
        await self._tell_clears()
        await self._share_epochs()
        await self._renew_all()
        self.is_up = True
        self._outbox.open()
        self._feed = self._spawn(self._listen())
        if self._is_said:
            self._is_said = False
            logger.info("sglang-cached: %s is back", self.name)

    async def _sync(self) -> None:
        """Sees what others have changed."""
        control = _numbers(await self._outbox.ask("HGETALL", _CONTROL))
        if control.get("boot") != self._boot:
            await self._rejoin()
            return
        await self._follow(control)
        if self._cleared and not self._clearing:
            await self._tell_clears()
        if _number(control, "epochs") != self._epochs_number or self._has_news:
            await self._share_epochs()
            self._epochs_number = _number(control, "epochs")

    async def _rejoin(self) -> None:
        """The server has lost what it had, without having been away."""
        self.is_up = self._outbox.is_open = False
        if self._feed:
            self._feed.cancel()
        await self._join()

    async def _follow(self, control: Mapping[str, int | str]) -> None:
        """Does what others have done: clears, and pools whose samples were replaced."""
        theirs = {
            name: number
            for name, number in control.items()
            if isinstance(number, int) and (name == clears.ALL or name.startswith(("m:", "o:")))
        }
        replaced, before = _number(control, "replaced"), self._replaced
        for kind in self._clears.take(theirs):
            if self._has_joined:
                self._clear_local(kind)
        if replaced != before and self._has_joined:
            await self._reread_since(before if replaced > before else 0)
        self._note(replaced)

    def _note(self, replaced: int) -> None:
        """All is done here that others did up to now."""
        known = Known(dict(self._clears.numbers), replaced)
        if known != self.state.known:
            self._replaced, self._has_joined = replaced, True
            self.state.known = known
            self._spawn(asyncio.to_thread(self.state.note))

    async def _reread_since(self, number: int) -> None:
        keys = await self._outbox.ask("ZRANGEBYSCORE", _REPLACED_KEY, f"({number}", "+inf")
        if isinstance(keys, list):
            found = [bytes.fromhex(key.decode()) for key in keys]
            await asyncio.gather(*(self._reread(key) for key in found))

    async def _listen(self) -> None:
        """Hears what others tell; what is missed is seen later."""
        while True:
            with suppress(Away):
                async for message in self._server.listen(CHANNEL):
                    if message.startswith(_RELEASED):
                        self._wake(message[1:])
                    elif message == _CHANGED:
                        self._kick.set()
            await asyncio.sleep(RETRY_SECONDS)

    # Epochs

    @property
    def _has_news(self) -> bool:
        return self._holder is not None and self._holder.epochs.as_numbers() != self._epochs

    async def _share_epochs(self) -> None:
        """Tells what was raised here, and takes what was elsewhere; raises `Away`."""
        if self._holder is None:
            return
        async with self._sharing:
            mine, base = self._holder.epochs.as_numbers(), self._epochs
            names = [name for name in mine | base if mine.get(name) != base.get(name)]
            told = [p for name in names for p in (name, base.get(name, ""), mine.get(name, ""))]
            script = _run(_EPOCHS, [_CONTROL, _EPOCHS_KEY], CHANNEL, *told)
            theirs = _numbers(await self._outbox.ask(*script))
            self._epochs = {name: n for name, n in theirs.items() if isinstance(n, int)}
            self._holder.adopt(mine, self._epochs)

    def publish(self) -> None:
        """Tells others of raised epochs, in bounded time; for threads other than the loop's."""
        loop = self._loop
        if loop is None or not self.is_up:
            return

        async def share() -> None:
            if self._has_news:
                await self._quietly(self._share_epochs())

        sharing = asyncio.run_coroutine_threadsafe(share(), loop)
        with suppress(TimeoutError):
            sharing.result(SECONDS)

    def read_epochs(self) -> dict[str, int]:
        """What the server knows of epochs, in bounded time, before there is a loop; nothing if it
        is away."""

        async def read() -> dict[str, int]:
            server = Server(self._url)
            try:
                found = _numbers((await server.send([("HGETALL", _EPOCHS_KEY)]))[0])
            finally:
                await server.close()
            return {name: number for name, number in found.items() if isinstance(number, int)}

        # A loop may run in this thread.
        found: Future[dict[str, int]] = Future()

        def work() -> None:
            try:
                found.set_result(asyncio.run(read()))
            except BaseException as e:
                found.set_exception(e)

        threading.Thread(target=work, daemon=True).start()
        try:
            return found.result(3 * SECONDS)
        except (Away, TimeoutError):
            return {}


@dataclass(frozen=True, slots=True)
class Known:
    """What others did that is done here, too."""

    clears: dict[str, int] = field(default_factory=dict)
    replaced: int = 0


class State:
    """What is known of the upstream, whose epochs are shared, and of what others did; the latter so
    that a folder hears of what was cleared while it was closed. Synchronous: belongs into threads,
    but for `load`."""

    def __init__(self, store: SharedStore, local: Document) -> None:
        self.known: Known | None = None
        self._store = store
        self._local = local
        self._document: dict[str, Any] = {}
        self._writing = threading.Lock()

    def load(self) -> dict[str, Any]:
        document = self._local.load()
        epochs = Epochs()
        try:
            if _SHARED in document:
                self.known = _known(document.pop(_SHARED))
            if "epochs" in document:
                epochs = Epochs.from_json(document["epochs"])
        except ValueError as e:
            self.reject(str(e))
            document = {}
        self._document = document
        if theirs := self._store.read_epochs():
            epochs.merge({}, theirs)
            document["epochs"] = epochs.as_json()
        return document

    @property
    def is_rejected(self) -> bool:
        return self._local.is_rejected

    def reject(self, why: str) -> None:
        self.known, self._document = None, {}
        self._local.reject(why)

    def save(self, document: dict[str, Any]) -> None:
        try:
            self._save(document)
        finally:
            self._store.publish()

    def note(self) -> None:
        """Another thing is `known`."""
        try:
            self._save(None)
        except OSError as e:
            logger.warning("sglang-cached: %s", e)

    def _save(self, document: dict[str, Any] | None) -> None:
        with self._writing:
            if document is not None:
                self._document = document
            shared = {_SHARED: asdict(self.known)} if self.known else {}
            self._local.save({**self._document, **shared})


_SHARED = "shared"


def _known(value: Any) -> Known:
    """Reads back what `State` keeps; raises ValueError if it is anything else."""
    numbers = value.get("clears") if isinstance(value, dict) else None
    if not isinstance(numbers, dict):
        raise ValueError(f"{_SHARED}: does not say what was cleared")
    replaced = value.get("replaced")
    if not all(type(number) is int and number >= 0 for number in (replaced, *numbers.values())):
        raise ValueError(f"{_SHARED}: a number that is none of 0 or more")
    for kind in numbers:
        clears.meaning(kind)
    return Known(numbers, replaced)


def _numbers(answer: Result) -> dict[str, int | str]:
    """A hash, as a script or a command has it; raises `Away` where there is none."""
    if isinstance(answer, Full | Refused):
        raise Away(str(answer))
    if isinstance(answer, list):
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    texts = {name.decode(): value.decode() for name, value in answer.items()}
    return {name: int(text) if text.isdigit() else text for name, text in texts.items()}


def _number(control: Mapping[str, int | str], name: str) -> int:
    found = control.get(name, 0)
    return found if isinstance(found, int) else 0

"""What is said to the server: the names of its keys, the scripts, and how answers are read.

Each name has the format's version in front, and in braces what says which node of a cluster has it.
`{POOL}:N` is the list of a pool's `element`s; N says how often the pool was cleared (see `clears`).
`{POOL}:lease` holds the token of the proxy that is to fill the pool, and a `+` behind it while
others wait. `{all}:control` is a sorted set of numbers that only rise: those of clears and of
epochs. `{all}:replaced` is a stream of the pools whose samples were replaced, or that were deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sglang_cached_addon.core.keys import FORMAT_VERSION

PREFIX = b"sglang-cached:%d:" % FORMAT_VERSION
CHANNEL = PREFIX + b"news"
"""The channel on which proxies tell of what they have changed."""

CONTROL, CHANGES = PREFIX + b"{all}:control", PREFIX + b"{all}:replaced"

REPLACED, DELETED = b"key", b"deleted"
"""What the stream of changes tells of pools."""

KEPT_CHANGES = 100_000
"""So many changes of pools are told to proxies that were away."""

CHANGED, RELEASED = b"c", b"r"
"""Messages: something has changed; the lease of the key behind this letter is free."""

LISTS = PREFIX + b"{*}:[0-9]*"
"""The pattern of the names of lists."""

FOR_EVER = 1e300
"""A time in seconds that scripts can read, and that is later than all others."""

Command = tuple[Any, ...]
Result = Any

# Reads a pool behind the samples that the asker has, from its last one on; where the pool has no
# more than those, and the asker has a token, also takes the lease, or notes that it is wanted.
_LOOK = """
local have, need, size = tonumber(ARGV[1]), tonumber(ARGV[2]), redis.call('LLEN', KEYS[1])
local found = redis.call('LRANGE', KEYS[1], math.max(have - 1, 0), need - 1)
if size > have or ARGV[3] == '' then return {'read', size, found} end
local holder = redis.call('GET', KEYS[2])
if holder then
  if string.sub(holder, -1) ~= '+' then redis.pcall('APPEND', KEYS[2], '+') end
  return {'busy', size, found}
end
local set = redis.pcall('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
return {set.err and 'full' or 'claimed', size, found}
"""

# Puts each sample into a list, unless it is there: into the places of those behind `base` that were
# stored before `since` or after `now`, and what is more behind all others. Returns the places.
_PUT = """
local function name(one) return string.match(one, '^%S+ %S+ %S+') or '?' end
local list, base, since, now = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if base > redis.call('LLEN', list) then base = 0 end
local places, stale, there = {}, {}, {}
for i, one in ipairs(redis.call('LRANGE', list, base, -1)) do
  there[name(one)] = base + i - 1
  local at = tonumber(string.match(one, '^%S+ %S+ (%S+)'))
  if not at or at < since or at > now then table.insert(stale, base + i - 1) end
end
for i = 4, #ARGV do
  local place = there[name(ARGV[i])]
  if not place then
    place = table.remove(stale, 1)
    if place then redis.call('LSET', list, place, ARGV[i])
    else place = redis.call('RPUSH', list, ARGV[i]) - 1 end
  end
  table.insert(places, place)
end
return places
"""

# Frees a lease, if the asker still has it, and tells those who wait.
_RELEASE = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] or holder == ARGV[1] .. '+' then
  redis.call('DEL', KEYS[1])
  if holder ~= ARGV[1] then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
end
"""


def list_of(key: bytes, clear: int) -> bytes:
    """The name of a pool's list; `clear` is the number of the last clear that the pool was in."""
    return b"%b{%b}:%d" % (PREFIX, key.hex().encode(), clear)


def pool_of(name: bytes) -> tuple[bytes, int]:
    """The key and the number in the name of a list; raises ValueError."""
    pool, _, number = name.removeprefix(PREFIX + b"{").partition(b"}:")
    return bytes.fromhex(pool.decode()), int(number)


def lease_of(key: bytes) -> bytes:
    return b"%b{%b}:lease" % (PREFIX, key.hex().encode())


def look(name: bytes, key: bytes, have: int, need: int, token: str, milliseconds: int) -> Command:
    """Reads a list; a `token` takes the pool's lease if there is no more. The answer is `claimed`,
    `busy`, `read` or `full`, the length of the list, and its elements from `have` - 1 on."""
    return ("EVAL", _LOOK, 2, name, lease_of(key), have, need, token, milliseconds)


def put(name: bytes, elements: Sequence[bytes], base: int, since: float, now: float) -> Command:
    """Puts elements into a list; the answer is their places. Doing it twice changes nothing."""
    since, now = (max(-FOR_EVER, min(time, FOR_EVER)) for time in (since, now))
    return ("EVAL", _PUT, 1, name, base, repr(since), repr(now), *elements)


def release(key: bytes, token: str) -> Command:
    return ("EVAL", _RELEASE, 1, lease_of(key), token, CHANNEL, RELEASED + key)


def publish_change() -> Command:
    return ("PUBLISH", CHANNEL, CHANGED)


def raise_numbers(numbers: Mapping[str, int]) -> Command:
    """Raises numbers of the control set to these; those that are higher stay."""
    pairs = [part for name, number in numbers.items() for part in (number, name)]
    return ("ZADD", CONTROL, "GT", *pairs)


def numbers(answer: Result) -> dict[str, int]:
    """The members of a sorted set and their numbers, as either protocol of Redis gives them."""
    flat = list(_flat(answer))
    return {name.decode(): int(float(n)) for name, n in zip(flat[::2], flat[1::2], strict=True)}


def tell(what: bytes, key: bytes) -> Command:
    """Adds to the stream that a pool was `REPLACED` or `DELETED`."""
    return ("XADD", CHANGES, "MAXLEN", "~", KEPT_CHANGES, "*", what, key)


def entries(answer: Result) -> list[tuple[str, bytes, bytes]]:
    """The ids of a stream's entries, what each tells, and the key that it is about."""
    pairs = ((one[0].decode(), list(_flat(one[1]))) for one in answer)
    return [(name, flat[-2], flat[-1]) for name, flat in pairs]


def _flat(answer: Any) -> Iterator[Any]:
    if isinstance(answer, dict):
        answer = answer.items()
    for one in answer:
        if isinstance(one, list | tuple):
            yield from _flat(one)
        else:
            yield one

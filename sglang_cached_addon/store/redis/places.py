"""Which samples the calls of a run have, on the server: names of keys, scripts, and their answers.

Of a run there are three keys. `{run:NAME}` is a hash of what is told of it; its `pass` is a number
that rises whenever the run begins anew. `{run:NAME}:taken` is a set: the marks (see
`core.places.marks`) of samples that were delivered. `{run:NAME}:held` has those of calls under way:
until when, and for which proxy. `{all}:runs` is a set of names.

`born` is a word for all that the server has of a pass, and is in `taken`: where something was lost,
there is another word, and whoever knows the former one tells again what it knows. Until all have
had the time for that, nothing is given out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from sglang_cached_addon.core import runs
from sglang_cached_addon.store.redis.protocol import PREFIX, Command, Result

NAMES = PREFIX + b"{all}:runs"

HOLD_SECONDS = 5.0
"""How long a sample is held for a proxy that says nothing more."""

QUIET_SECONDS = 3.0
"""How long nothing is given out of a run of which the server had lost something."""

KEPT, FREED, HELD = "k", "f", "h"
"""What is told of a mark: its sample was delivered, was not, or is about to be."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Which pass of a run is meant."""

    number: int = 0
    """0 where none is known of."""
    born: str = ""
    """Empty where nobody has drawn yet, as far as is known."""
    fresh_since: float = -inf
    """As `Run.fresh_since`."""


class Said(NamedTuple):
    """What the server says to a proxy that draws, or tells."""

    current: Pass
    """As it is by now."""
    is_done: bool
    """The asker was right about that, and it was done."""
    granted: list[int]
    refused: list[int]
    """Marks that are taken for good."""


# Returns how things are, unless the asker knows; makes what is not there.
_ENTER = """
local run, taken, held, me = KEYS[1], KEYS[2], KEYS[3], ARGV[5]
local pass, born, fresh, word = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local hold, quiet, ttl = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function owner(mark)
  local ends, by = string.match(redis.call('HGET', held, mark) or '', '^(%d+) (.*)')
  return ends and tonumber(ends) > now and by
end
local function take(mark)
  redis.call('HSET', held, mark, string.format('%d %s', now + hold, me))
end
local there = redis.call('HMGET', run, 'pass', 'born', 'fresh')
local last = tonumber(there[1] or 0)
if last > pass then return {last, there[2] or '', there[3] or ''} end
local is_lost = last < pass or there[2] and redis.call('SISMEMBER', taken, there[2]) == 0
local is_new = not is_lost and not there[2]
if is_lost or is_new then
  pass = math.max(pass, 1)
  there = {pass, word, is_lost and fresh or there[3] or ''}
  redis.call('DEL', taken, held)
  redis.call('SADD', taken, word)
  redis.call('HSET', run, 'pass', pass, 'born', word, 'fresh', there[3],
    'quiet', is_lost and now + quiet or 0)
end
there = {pass, there[2], there[3] or ''}
local function done(granted, refused)
  if ttl > 0 then for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ttl) end end
  return {there[1], there[2], there[3], granted, refused}
end
if there[2] ~= born and not is_new then return there end
"""

# Of each group of marks, gives so many as are wanted: the first ones that nobody has.
_TAKE = (
    _ENTER
    + """
if tonumber(redis.call('HGET', run, 'quiet') or 0) > now then return there end
local granted, refused, at = {}, {}, 9
while ARGV[at] do
  local wanted, size = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  for i = at + 2, at + 1 + size do
    if wanted == 0 then break end
    if redis.call('SISMEMBER', taken, ARGV[i]) == 1 then table.insert(refused, ARGV[i])
    elseif not owner(ARGV[i]) then
      take(ARGV[i])
      table.insert(granted, ARGV[i])
      wanted = wanted - 1
    end
  end
  at = at + 2 + size
end
return done(granted, refused)
"""
)

# Adds to what is counted, and takes note of what is told of marks.
_TELL = (
    _ENTER
    + """
redis.call('HSETNX', run, 'first', ARGV[9])
if tonumber(ARGV[9]) > tonumber(redis.call('HGET', run, 'last') or 0) then
  redis.call('HSET', run, 'last', ARGV[9])
end
for i, name in ipairs({'calls', 'reused', 'generated'}) do
  redis.call('HINCRBY', run, name, ARGV[9 + i])
end
for i = 13, #ARGV do
  local what, mark = string.sub(ARGV[i], 1, 1), string.sub(ARGV[i], 2)
  local by = owner(mark)
  if what == 'k' then
    redis.call('SADD', taken, mark)
    redis.call('HDEL', held, mark)
  elseif what == 'f' then
    if by == me then redis.call('HDEL', held, mark) end
  elseif (not by or by == me) and redis.call('SISMEMBER', taken, mark) == 0 then take(mark) end
end
return done({}, {})
"""
)

# What people are told of a run; changes it, where that is wanted.
_SHOW = """
local run, taken, held = KEYS[1], KEYS[2], KEYS[3]
local change, pass, at, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function show()
  local there = redis.call('HMGET', run, 'calls', 'reused', 'generated', 'first', 'last', 'fresh')
  if not there[4] then return false end
  local marks = redis.call('HGETALL', held)
  for i = 1, #marks, 2 do
    local ends = tonumber(string.match(marks[i + 1], '^%d+'))
    if ends <= now then redis.call('HDEL', held, marks[i]) end
  end
  there[7] = math.max(redis.call('SCARD', taken) - 1, 0) + redis.call('HLEN', held)
  return there
end
local before = show()
if change == '' or not before and change ~= 'fresh' then return before end
redis.call('HSET', run, 'pass', math.max(pass, redis.call('HGET', run, 'pass') or 0) + 1)
redis.call('HDEL', run, 'born', 'fresh')
redis.call('UNLINK', taken, held)
if change == 'fresh' then
  redis.call('HSETNX', run, 'first', at)
  redis.call('HSET', run, 'last', at, 'fresh', at)
end
if change == 'delete' then
  redis.call('HDEL', run, 'calls', 'reused', 'generated', 'first', 'last')
end
if ttl > 0 then redis.call('PEXPIRE', run, ttl) end
return change == 'delete' and before or show()
"""


@dataclass(frozen=True, slots=True)
class RunCommands:
    """What one proxy says of a run, which is remembered for so many seconds."""

    name: str
    proxy: str
    ttl: float

    @property
    def _keys(self) -> tuple[object, ...]:
        return (3, *keys_of(self.name))

    @property
    def _ttl(self) -> int:
        return int(self.ttl * 1000) if self.ttl < inf else 0

    def _enter(self, script: str, current: Pass, word: str) -> Command:
        fresh = "" if current.fresh_since == -inf else repr(current.fresh_since)
        times = int(HOLD_SECONDS * 1000), int(QUIET_SECONDS * 1000), self._ttl
        who = (current.number, current.born, fresh, word, self.proxy)
        return ("EVAL", script, *self._keys, *who, *times)

    def take(self, current: Pass, word: str, wants: Iterable[tuple[int, Sequence[int]]]) -> Command:
        """Takes so many of each group of marks. `word` is for what the server has to make."""
        groups = (part for count, marks in wants for part in (count, len(marks), *marks))
        return (*self._enter(_TAKE, current, word), *groups)

    def tell(
        self, current: Pass, word: str, at: float, counts: Sequence[int], told: Iterable[str]
    ) -> Command:
        """Says when the run was used, what to add to its counts, and of marks what became of them:
        each with a letter before it."""
        return (*self._enter(_TELL, current, word), repr(at), *counts, *told)

    def show(self, change: str = "", known: int = 0, at: float = 0.0) -> Command:
        """What is told of the run, and changes it: `rewind`, `fresh` or `delete`. The pass will be
        higher than one that is `known`."""
        return ("EVAL", _SHOW, *self._keys, change, known, repr(at), self._ttl)


def keys_of(name: str) -> tuple[bytes, bytes, bytes]:
    """The names of a run's three keys: what is told of it, what it has taken, and what is held."""
    run = b"%b{run:%b}" % (PREFIX, name.encode())
    return run, run + b":taken", run + b":held"


def is_held(said: bytes | None, now: float) -> bool:
    """Whether a mark is held at this Unix time, of which the server says so."""
    return said is not None and int(said.split()[0]) > now * 1000


def read(answer: Result) -> Said:
    """What the server says to `take` or `tell`."""
    number, born, fresh, *lists = answer
    current = Pass(int(number), born.decode(), float(fresh) if fresh else -inf)
    granted, refused = lists or ([], [])
    return Said(current, bool(lists), [*map(int, granted)], [*map(int, refused)])


def shown(name: str, answer: Result) -> dict[str, Any] | None:
    """What the server says to `show`; None where there is no such run."""
    if not answer:
        return None
    calls, reused, generated, first, last, fresh, places = answer
    return runs.shown(
        name,
        calls=int(calls or 0),
        places=int(places),
        reused=int(reused or 0),
        generated=int(generated or 0),
        first=float(first),
        last=float(last),
        fresh_since=float(fresh) if fresh else -inf,
    )

"""Fetches under way and who waits for them, without any upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.flight import Flight
from sglang_cached_addon.service.flights import Flights
from sglang_cached_addon.service.stream import Stream
from tests.tables import each
from tests.upstream.scripted import bounded, settled


def samples(words: str) -> Sequence[Sample]:
    return [Sample(word.encode(), 1.0, 1.0, 1) for word in words]


class Tower:
    """Flights, and a log of who went on."""

    def __init__(self) -> None:
        self.flights = Flights()
        self.log: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self, keys: str, *, alone: bool = False) -> Flight:
        """A flight of pools named by letters, whose task only ends with it."""
        flight = Flight([key.encode() for key in keys])
        self.flights.begin(flight, alone=alone)
        flight.task = asyncio.ensure_future(self._fly())
        return flight

    async def _fly(self) -> None:
        await asyncio.get_running_loop().create_future()

    def wait(self, name: str, **needs: int) -> asyncio.Task[None]:
        """One who waits for pools that are to have so many samples."""
        task = asyncio.ensure_future(self._wait(name, {k.encode(): n for k, n in needs.items()}))
        self.tasks.append(task)
        return task

    async def _wait(self, name: str, needs: Mapping[bytes, int]) -> None:
        flight = await self.flights.wait(needs)
        self.log.append(f"{name} {flight.refusal}" if flight.refusal else name)

    def land(self, flight: Flight, **brings: str) -> None:
        """Pools are brought samples that are named by letters."""
        self.flights.land(flight, {k.encode(): samples(words) for k, words in brings.items()})

    def brought(self, key: bytes, stamp: int | None = None, *, is_first: bool = False) -> str:
        """What is at hand of a pool."""
        found = self.flights.brought(key, stamp, is_first=is_first)
        return "".join(sample.answer.decode() for sample in found)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left in any table."""
        return not any(vars(self.flights).values())


FlightCase = Callable[[Tower], Awaitable[None]]


async def first_of_many(tower: Tower) -> None:
    """One who waits for several pools goes on when the first is there."""
    first, second = tower.begin("ab"), tower.begin("c")
    tower.wait("both", b=1, c=5)
    tower.wait("c", c=1)
    await settled()
    assert (first.clients, second.clients) == (1, 2)
    tower.flights.end(first)
    await settled()
    assert tower.log == ["both"]
    assert (first.clients, second.clients) == (0, 1)
    tower.flights.end(second)
    await settled()
    assert tower.log == ["both", "c"]


async def two_pools_of_one(tower: Tower) -> None:
    """One who waits for two pools of one flight wants it once, and is woken once."""
    flight = tower.begin("ab")
    tower.wait("both", a=1, b=1)
    await settled()
    assert flight.clients == 1
    tower.flights.end(flight)
    await settled()
    assert tower.log == ["both"]


async def busy(tower: Tower) -> None:
    """Only those of the pools that were asked for, and that are being filled, are busy."""
    first, second = tower.begin("ab"), tower.begin("c")
    assert set(tower.flights.busy([b"a", b"c", b"d"])) == {b"a", b"c"}
    assert not tower.flights.any_landed
    tower.land(second, c="x")
    assert set(tower.flights.busy([b"a", b"c", b"d"])) == {b"a"}
    assert tower.flights.landed([b"a", b"c"]) == [second]
    tower.flights.end(first)
    tower.flights.end(first)
    assert set(tower.flights.busy([b"a", b"b", b"c"])) == set()
    tower.flights.end(second)
    assert tower.flights.landed([b"a", b"c"]) == []
    assert not (first.is_flying or second.is_flying)


async def landed(tower: Tower) -> None:
    """What has been brought is at hand at once, and in order, until it is stored; nobody waits any
    longer, whomever it was fetched for."""
    first, second = tower.begin("a"), tower.begin("a", alone=True)
    tower.wait("one", a=1)
    await settled()
    tower.land(first, a="xy")
    tower.land(first, a="!")
    await settled()
    assert tower.log == ["one"]
    tower.land(second, a="z")
    assert tower.brought(b"a") == "xyz"
    assert tower.brought(b"b") == ""
    assert tower.flights.landed([b"a", b"a"]) == [first, second]
    tower.flights.end(first)
    assert tower.brought(b"a") == "z"
    tower.flights.end(second)
    assert tower.brought(b"a") == ""


async def settled_in_parts(tower: Tower) -> None:
    """What is stored is no longer at hand a second time."""
    flight = tower.begin("ab")
    tower.land(flight, a="uvwx", b="y")

    def store(words: str, *, is_last: bool = False) -> None:
        addition = Addition(b"a", "", b"", samples(words), is_last=is_last)
        tower.flights.stored(flight, addition)

    store("u")
    assert (tower.brought(b"a"), tower.brought(b"b")) == ("vwx", "y")
    store("v")
    assert tower.brought(b"a") == "wx"
    store("w", is_last=True)  # the rest will not be
    assert (tower.brought(b"a"), tower.brought(b"b")) == ("", "y")
    assert tower.flights.landed([b"a"]) == []
    tower.flights.end(flight)
    assert tower.brought(b"b") == ""


async def in_order(tower: Tower) -> None:
    """What has landed first is stored first; behind what is not stored, nothing is."""
    first, second, other = tower.begin("ab"), tower.begin("ab", alone=True), tower.begin("c")
    tower.land(first, a="x", b="y")
    tower.land(second, a="z")
    tower.land(other, c="w")
    assert await tower.flights.turn(first) is None
    assert await tower.flights.turn(other) is None
    turn = asyncio.ensure_future(tower.flights.turn(second))
    await settled()
    assert not turn.done()
    first.dropped = Reason.UNCONFIRMED
    assert first.task
    first.task.cancel()
    assert await turn is Reason.UNCONFIRMED
    for flight in (first, second, other):
        tower.flights.end(flight)


async def what_counts(tower: Tower) -> None:
    """What was brought for another model does not count, and what is to replace samples is no
    addition to them."""
    old, new, instead = (tower.begin("a", alone=True) for _ in range(3))
    old.stamp, new.stamp, instead.stamp = 1, 2, 2
    instead.is_addition = False
    for flight, words in ((old, "o"), (new, "n"), (instead, "i")):
        tower.land(flight, a=words)
    assert tower.brought(b"a", 1) == "o"
    assert tower.brought(b"a", 2) == "n"
    assert tower.brought(b"a", 2, is_first=True) == "ni"
    for flight in (old, new, instead):
        tower.flights.end(flight)


async def unwanted(tower: Tower) -> None:
    """What nobody wants any more ends, but not before: upstream generates nothing for nobody."""
    flight = tower.begin("a")
    assert flight.task
    with tower.flights.wanted(flight):
        waiter = tower.wait("one", a=1)
        await settled()
        assert (flight.clients, tower.flights.waiting) == (2, 1)
    await settled()
    assert (flight.clients, tower.flights.waiting) == (1, 0)
    assert not flight.task.done()
    waiter.cancel()
    await settled()
    assert flight.task.cancelled()
    # Between that and its end, nobody begins to wait for it.
    assert set(tower.flights.busy([b"a"])) == set()
    tower.flights.end(flight)


async def unwanted_when_landed(tower: Tower) -> None:
    """What was paid for is stored, whoever wants it."""
    flight = tower.begin("a")
    assert flight.task
    waiter = tower.wait("one", a=1)
    await settled()
    tower.land(flight, a="x")
    waiter.cancel()
    await settled()
    assert (flight.clients, flight.task.done()) == (0, False)
    flight.task.cancel()
    tower.flights.end(flight)


async def never_wanted(tower: Tower) -> None:
    """A flight without a task yet is not to end in a traceback."""
    flight = Flight([b"a"])
    with tower.flights.wanted(flight):
        pass
    assert flight.clients == 0


async def leaving(tower: Tower) -> None:
    """One who leaves is nowhere any more, and not the one who goes first."""
    first, second = tower.begin("ab"), tower.begin("c")
    gone, stays = tower.wait("gone", a=9, c=9), tower.wait("stays", a=1)
    await settled()
    gone.cancel()
    await settled()
    assert gone.cancelled()
    assert (first.clients, second.clients) == (1, 0)
    assert {key: len(w) for key, w in tower.flights._waiters.items()} == {b"a": 1}
    tower.flights.end(first)
    tower.flights.end(second)
    await stays
    assert tower.log == ["stays"]


async def leaving_when_woken(tower: Tower) -> None:
    """As above, of one who is woken in the same moment."""
    flight = tower.begin("a")
    gone = tower.wait("gone", a=9)
    tower.wait("stays", a=1)
    await settled()
    tower.flights.end(flight)
    gone.cancel()
    await settled()
    assert tower.log == ["stays"]
    assert gone.cancelled()


async def crowd(tower: Tower) -> None:
    """A thousand who wait are all woken, in their order, also where some of them have left."""
    flight = tower.begin("a")
    for number in range(1000):
        tower.wait(str(number), a=number % 10)
    await settled()
    assert (flight.clients, tower.flights.waiting) == (1000, 999)
    for task in tower.tasks[::7]:
        task.cancel()
    await settled()
    tower.flights.end(flight)
    await settled()
    stayed = [number for number in range(1000) if number % 7]
    assert tower.log == [str(n) for n in sorted(stayed, key=lambda n: -(n % 10))]
    assert flight.clients == 0


async def same_keys(tower: Tower) -> None:
    """A flight that another has taken the place of cannot take that one's place away, nor wake
    those who wait for it."""
    first, second = tower.begin("ab"), tower.begin("a")
    tower.wait("one", a=1)
    await settled()
    tower.flights.end(first)
    await settled()
    assert set(tower.flights.busy([b"a", b"b"])) == {b"a"}
    assert tower.log == []
    tower.flights.end(second)
    await settled()
    assert tower.log == ["one"]


FLIGHTS = [
    first_of_many, two_pools_of_one, busy, landed, settled_in_parts, in_order, what_counts,
    unwanted, unwanted_when_landed, never_wanted, leaving, leaving_when_woken,
    crowd, same_keys,
]  # fmt: skip


@each("case", FLIGHTS)
@bounded
async def test_flights(case: FlightCase) -> None:
    """What each case says; and whatever happened, what is over is forgotten."""
    tower = Tower()
    await case(tower)
    await settled()
    assert tower.is_clean


def test_flights_that_can_be_followed() -> None:
    """A call reads along with a stream of its own identity, as long as that is live and whole, of
    the newest fetch, and not for one client alone."""
    tower, stream, ended = Tower(), Stream(), Stream()
    flights = tower.flights
    assert flights.find("a") is None
    former, flight = Flight([b"a"], "a", stream=Stream()), Flight([b"a"], "a", stream=stream)
    over, landed = Flight([b"b"], "b", stream=ended), Flight([b"c"], "c", stream=Stream())
    alone, plain = Flight([b"d"], "d", stream=Stream()), Flight([b"e"], "e")
    everyone = (former, flight, over, landed, alone, plain, Flight([b"f"]))
    for one in everyone:
        flights.begin(one, alone=one is alone)
    assert (len(flights), flights.streams) == (7, 5)
    ended.end(complete=True)
    flights.land(landed, {})
    flights.end(former)
    found = {identity: flights.find(identity) for identity in ("a", "b", "c", "d", "e", None)}
    assert found == {**dict.fromkeys(found), "a": flight}
    stream.is_whole = False
    assert flights.find("a") is None
    for one in everyone:
        flights.end(one)
    assert (len(flights), flights.streams) == (0, 0)
    assert tower.is_clean

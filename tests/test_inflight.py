"""Fetches under way and who waits for them, without any upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import pytest

from sglang_cached_addon.dialects.base import Part
from sglang_cached_addon.inflight import BACKLOG, Cut, Flight, Flights, Reader, State, Stream
from sglang_cached_addon.relay import Event


def delta(text: str, choice: int = 0) -> Event:
    return Event(text.encode(), Part.DELTA, choice)


def state(text: str, choice: int = 0) -> Event:
    return Event(text.encode(), Part.STATE, choice)


async def text(reader: Reader, is_over: Callable[[], bool] = bool) -> str:
    """All that a reader sees, batches told apart."""
    batches = [b"".join(event.data for event in news) async for news in reader.read(is_over)]
    return b"|".join(batches).decode()


async def settled() -> None:
    """Lets every task that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(case: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        await asyncio.wait_for(case, 10)

    asyncio.run(within())


# Streams


Case = Callable[[Stream], Awaitable[None]]


async def early(stream: Stream) -> None:
    """One who is there before upstream gets each event as it comes."""
    reading = asyncio.ensure_future(text(stream.reader()))
    opened = asyncio.ensure_future(stream.opened())
    await settled()
    assert not opened.done()
    stream.open()
    assert await opened
    for word in "abc":
        stream.publish([delta(word)])
        await settled()
    stream.end(complete=True)
    assert await reading == "a|b|c"


async def late(stream: Stream) -> None:
    """One who comes late gets what there is at once."""
    stream.open()
    stream.publish([delta("a"), delta("b")])
    assert await stream.opened()
    reading = asyncio.ensure_future(text(stream.reader()))
    await settled()
    stream.publish([delta("c"), delta("d")])
    stream.end(complete=True)
    assert await reading == "ab|cd"


async def after_the_end(stream: Stream) -> None:
    stream.open()
    stream.publish([delta("a")])
    reader = stream.reader()
    stream.end(complete=True)
    assert await stream.opened()
    assert await text(reader) == "a"


async def superseded(stream: Stream) -> None:
    """Of events that have all so far, the newest is enough for who comes late, for each choice; who
    is there sees each, however late it looks."""
    stream.open()
    first = stream.reader()
    stream.publish([delta("a"), delta("x", 1), state("ab"), state("abc"), delta("xy", 1)])
    stream.publish([Event(b"!", Part.OTHER), state("xyz", 1), state("abcd")])
    stream.end(complete=True)
    assert await text(first) == "axababcxy!xyzabcd"
    assert await text(stream.reader()) == "axxy!xyzabcd"


async def behind(stream: Stream) -> None:
    """One who has seen some of it sees each of the others, also the very next."""
    stream.open()
    reader = stream.reader()
    reading = asyncio.ensure_future(text(reader))
    stream.publish([state("a")])
    await settled()
    assert reader.place == 1
    stream.publish([state("ab"), state("abc")])
    stream.end(complete=True)
    assert await reading == "a|ababc"


async def superseded_without_end(stream: Stream) -> None:
    """A reader that does not read does not keep everything in memory."""
    reader = stream.reader()
    stream.open()
    for number in range(10 * BACKLOG):
        stream.publish([state(f"{number} ")])
    stream.end(complete=True)
    assert sum(event is not None for event in stream.events) == BACKLOG + 1
    assert (await text(reader)).split()[-1] == str(10 * BACKLOG - 1)


async def gone_reader(stream: Stream) -> None:
    """One who has left does not keep anything for itself."""
    gone, other = stream.reader(), stream.reader()
    reading = asyncio.ensure_future(text(other))
    stream.open()
    for word in ("a", "ab"):
        stream.publish([state(word)])
        await settled()
    del gone
    stream.publish([state("abc")])
    assert [event is not None for event in stream.events] == [False, False, True]
    stream.end(complete=True)
    assert await reading == "a|ab|abc"


async def cut(stream: Stream) -> None:
    """What broke off breaks off for all, behind what came before."""
    stream.open()
    stream.publish([delta("a")])
    news = stream.reader().read()
    stream.end(complete=False)
    assert await stream.opened()
    assert [event.data for event in await anext(news)] == [b"a"]
    with pytest.raises(Cut):
        await anext(news)


async def refused(stream: Stream) -> None:
    """A fetch that never became a stream is nothing to read."""
    opened = asyncio.ensure_future(stream.opened())
    await settled()
    stream.end(complete=False)
    assert not await opened


async def cancelled(stream: Stream) -> None:
    """One who is cancelled while he waits takes nobody with him."""
    stream.open()
    gone, other = (asyncio.ensure_future(text(stream.reader())) for _ in range(2))
    await settled()
    gone.cancel()
    await settled()
    stream.publish([delta("a")])
    stream.end(complete=True)
    assert await other == "a"
    assert gone.cancelled()


async def over(stream: Stream) -> None:
    """One who has had enough is told so, and the others read on."""
    enough: list[int] = []
    stream.open()
    first = asyncio.ensure_future(text(stream.reader(), lambda: bool(enough)))
    other = asyncio.ensure_future(text(stream.reader()))
    stream.publish([delta("a")])
    await settled()
    enough.append(1)
    await settled()
    assert not first.done()
    stream.tell()
    assert await first == "a"
    stream.publish([delta("b")])
    stream.end(complete=True)
    assert await other == "a|b"


async def over_before(stream: Stream) -> None:
    """As above, of one to whom more was to be shown."""
    stream.open()
    stream.publish([delta("a")])
    assert await text(stream.reader(), lambda: True) == ""


async def twice(stream: Stream) -> None:
    """The first end is the one that counts."""
    stream.open()
    stream.end(complete=True)
    stream.end(complete=False)
    assert stream.state is State.COMPLETE
    assert not stream.is_live


CASES = [
    early, late, after_the_end, superseded, behind, superseded_without_end, gone_reader, cut,
    refused, cancelled, over, over_before, twice,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_stream(case: Case) -> None:
    """See each."""

    async def within() -> None:
        await case(Stream())

    run(within())


# Flights


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
        alone = await self.flights.wait(needs)
        self.log.append(f"{name} alone" if alone else name)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left in any table."""
        return not any(vars(self.flights).values())


FlightCase = Callable[[Tower], Awaitable[None]]


async def order(tower: Tower) -> None:
    """Who needs most goes first, and has what all others need; of equals, who came first."""
    flight = tower.begin("a")
    for name, need in {"one": 1, "three": 3, "two": 2, "three too": 3, "one too": 1}.items():
        tower.wait(name, a=need)
    await settled()
    assert tower.log == []
    tower.flights.end(flight)
    await settled()
    assert tower.log == ["three", "three too", "two", "one", "one too"]


async def lasting(tower: Tower) -> None:
    """What would fail in the same way again is not tried by one after the other."""
    flight = tower.begin("a")
    tower.wait("one", a=1)
    tower.wait("two", a=1)
    await settled()
    tower.flights.end(flight, is_lasting=True)
    await settled()
    assert tower.log == ["one alone", "two alone"]


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


async def other_pools(tower: Tower) -> None:
    """The end of one flight wakes nobody who waits for another."""
    first, second = tower.begin("a"), tower.begin("b")
    tower.wait("b", b=1)
    await settled()
    tower.flights.end(first)
    await settled()
    assert tower.log == []
    tower.flights.end(second)
    await settled()
    assert tower.log == ["b"]


async def alone(tower: Tower) -> None:
    """A flight that is for one client alone is under way, and waited for by nobody."""
    flight = tower.begin("a", alone=True)
    assert len(tower.flights) == 1
    assert list(tower.flights) == [flight]
    assert tower.flights.busy([b"a"]) == set()
    other = tower.begin("a")
    tower.flights.end(flight)
    assert tower.flights.busy([b"a"]) == {b"a"}
    tower.flights.end(other)


async def busy(tower: Tower) -> None:
    """Only those of the pools that were asked for, and that are being filled, are busy."""
    first, second = tower.begin("ab"), tower.begin("c")
    assert tower.flights.busy([b"a", b"c", b"d"]) == {b"a", b"c"}
    assert tower.flights.settling([b"a", b"c", b"d"]) == set()
    tower.flights.answer(second)
    assert tower.flights.settling([b"a", b"c", b"d"]) == {b"c"}
    tower.flights.end(first)
    tower.flights.end(first)
    assert tower.flights.busy([b"a", b"b", b"c"]) == {b"c"}
    tower.flights.end(second)
    assert tower.flights.settling([b"a", b"c", b"d"]) == set()


async def settling(tower: Tower) -> None:
    """What is on its way to the store is waited for, whomever it was fetched for: of many that
    bring something, the first."""
    flights = [tower.begin("a", alone=True) for _ in range(2)]
    tower.flights.answer(flights[0])
    tower.flights.answer(flights[0])
    tower.flights.answer(flights[1])
    assert tower.flights.busy([b"a"]) == set()
    assert tower.flights.settling([b"a", b"b"]) == {b"a"}
    tower.wait("one", a=1)
    await settled()
    tower.flights.end(flights[1])
    await settled()
    assert tower.log == ["one"]
    assert tower.flights.settling([b"a"]) == {b"a"}
    tower.wait("two", a=1)
    await settled()
    tower.flights.end(flights[0])
    await settled()
    assert tower.log == ["one", "two"]


async def replacing(tower: Tower) -> None:
    """What is stored is out of date from the moment on that something takes its place, be it for
    one client alone, until that is stored."""
    plain, first, second = tower.begin("a"), tower.begin("a", alone=True), tower.begin("b")
    first.replaces = second.replaces = True
    assert tower.flights.replacing == set()
    for flight in (plain, first):
        tower.flights.answer(flight)
    assert tower.flights.replacing == {first}
    for flight in (plain, second, first):
        tower.flights.end(flight)
    assert tower.flights.replacing == set()


async def unanswered_alone(tower: Tower) -> None:
    """The end of what was for one client alone, and brought nothing, wakes nobody."""
    alone, shared = tower.begin("a", alone=True), tower.begin("a")
    tower.wait("one", a=1)
    await settled()
    assert (alone.clients, shared.clients) == (0, 1)
    tower.flights.end(alone)
    await settled()
    assert tower.log == []
    tower.flights.end(shared)


async def unwanted(tower: Tower) -> None:
    """What nobody wants any more ends, but not before: upstream generates nothing for nobody."""
    flight = tower.begin("a")
    assert flight.task
    with flight.wanted():
        waiter = tower.wait("one", a=1)
        await settled()
        assert (flight.clients, tower.flights.waiting) == (2, 1)
    await settled()
    assert (flight.clients, tower.flights.waiting) == (1, 0)
    assert not flight.task.done()
    waiter.cancel()
    await settled()
    assert flight.task.cancelled()
    tower.flights.end(flight)


async def unwanted_when_answered(tower: Tower) -> None:
    """What was paid for is stored, whoever wants it."""
    flight = tower.begin("a")
    assert flight.task
    waiter = tower.wait("one", a=1)
    await settled()
    tower.flights.answer(flight)
    waiter.cancel()
    await settled()
    assert (flight.clients, flight.task.done()) == (0, False)
    flight.task.cancel()
    tower.flights.end(flight)


async def never_wanted(tower: Tower) -> None:
    """A flight without a task yet is not to end in a traceback."""
    flight = Flight([b"a"])
    with flight.wanted():
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


async def next_flight(tower: Tower) -> None:
    """Who goes first fetches for the others, who wait again: of many, one at a time is upstream."""
    needs = {"a": 2, "b": 3, "c": 1}
    left = 0
    begun: list[str] = []

    async def ask(name: str, need: int) -> None:
        nonlocal left
        while left < need:
            if tower.flights.busy([b"k"]):
                await tower.flights.wait({b"k": need})
                continue
            begun.append(name)
            flight = tower.begin("k")
            await settled()
            left = need
            tower.flights.end(flight)

    flight = tower.begin("k")
    asks = [asyncio.ensure_future(ask(name, need)) for name, need in needs.items()]
    await settled()
    tower.flights.end(flight)
    await asyncio.gather(*asks)
    assert begun == ["b"]


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
    assert tower.flights.busy([b"a", b"b"]) == {b"a"}
    assert tower.log == []
    tower.flights.end(second)
    await settled()
    assert tower.log == ["one"]


async def refusal_of_nobody(tower: Tower) -> None:
    """A flight for which nobody waits ends like any other."""
    tower.flights.end(tower.begin("a"), is_lasting=True)


FLIGHTS = [
    order, lasting, first_of_many, two_pools_of_one, other_pools, alone, busy, settling,
    replacing, unanswered_alone, unwanted,
    unwanted_when_answered, never_wanted, leaving, leaving_when_woken, next_flight, crowd,
    same_keys, refusal_of_nobody,
]  # fmt: skip


@pytest.mark.parametrize("case", FLIGHTS)
def test_flights(case: FlightCase) -> None:
    """See each; and whatever happened, what is over is forgotten."""

    async def within() -> None:
        tower = Tower()
        await case(tower)
        await settled()
        assert tower.is_clean

    run(within())


def streamed(identity: str) -> Flight:
    flight = Flight([identity.encode()], identity)
    flight.stream = Stream()
    return flight


def test_flight_that_can_be_followed() -> None:
    """A call would read along with what is over, is another's or is no stream; or not at all."""
    flights = Flights()
    assert flights.find("a") is None
    flight = streamed("a")
    flights.begin(flight, alone=False)
    assert flights.find("a") is flight
    assert flights.find("b") is None
    assert flights.streams == 1
    assert flight.stream
    flight.stream.end(complete=True)
    assert flights.find("a") is None
    assert flights.streams == 0
    flights.end(flight)


def test_flight_that_is_answered() -> None:
    """A call that repeats an answered one would be the same answer once more, not a hit."""
    flights = Flights()
    flight = streamed("a")
    flights.begin(flight, alone=False)
    flights.answer(flight)
    assert flights.find("a") is None
    flights.end(flight)


@pytest.mark.parametrize("identity", [None, "a"])
def test_flight_that_cannot_be_followed(identity: str | None) -> None:
    """A call would wait for the events of what has none, or of what is for one client alone."""
    flights = Flights()
    plain = Flight([b"a"], identity)
    flights.begin(plain, alone=False)
    assert flights.find(identity) is None
    flights.end(plain)
    flight = streamed("b")
    flights.begin(flight, alone=True)
    assert flights.find("b") is None
    assert flights.streams == 1
    flights.end(flight)
    assert not any(vars(flights).values())


def test_flights_of_one_identity() -> None:
    """A fetch that another has taken the place of would take that one's place away."""
    flights = Flights()
    first, second = streamed("a"), streamed("a")
    flights.begin(first, alone=False)
    flights.begin(second, alone=False)
    flights.end(first)
    assert flights.find("a") is second
    flights.end(second)
    assert (flights.find("a"), len(flights), flights.streams) == (None, 0, 0)


def test_iteration_while_flights_end() -> None:
    """Ending all flights would end in a traceback."""
    flights = Flights()
    for name in "abc":
        flights.begin(streamed(name), alone=False)
    for flight in flights:
        flights.end(flight)
    assert len(flights) == 0

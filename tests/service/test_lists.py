"""Calls for long lists, which are answered in portions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.policy import Mode, Reason
from sglang_cached_addon.service import lists
from tests.service.stage import Stage, standing
from tests.upstream.scripted import Asked, AsyncTest, Test, entering, until

PATH = "/v1/detokenize"
LONG = [[k, 7] for k in range(20)]


class Server:
    """An upstream that answers lists of ids."""

    def __init__(self, stage: Stage) -> None:
        self.asked: list[list[Any]] = []
        """The lists that it was asked for."""
        self.says: Callable[[Asked], bool] = lambda asked: False
        """Answers a call in a way of its own; whether it has."""
        self._stage = stage

    async def run(self) -> None:
        while True:
            asked = await self._stage.asked()
            self.asked.append(asked.json["tokens"])
            if not self.says(asked):
                texts = [" ".join(map(str, ids)) for ids in asked.json["tokens"]]
                asked.answer(200, {"text": texts})


def text(rows: list[Any]) -> bytes:
    """What it answers."""
    return orjson.dumps({"text": [" ".join(map(str, ids)) for ids in rows]})


def portioned(portion: int = 8, **kwargs: Any) -> Callable[[AsyncTest], Test]:
    """A test of a service that takes so many rows at a time, with such a server."""

    @asynccontextmanager
    async def both() -> AsyncIterator[tuple[Stage, Server]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lists, "PORTION", portion)
            patch.setattr(lists, "SHORT", 20)
            async with standing(**kwargs) as stage:
                server = Server(stage)
                running = asyncio.ensure_future(server.run())
                yield stage, server
                running.cancel()

    return entering(both, "stage", "server")


def sizes(server: Server) -> list[int]:
    return [len(rows) for rows in server.asked]


@portioned()
async def test_portions(stage: Stage, server: Server) -> None:
    """What is short of each portion is asked for in a call of its own, and each row once; the
    answer is that to the whole list."""
    got = await stage.ask(PATH, {"tokens": LONG[5:9]})
    assert got.brief == "miss 200" and got.body == text(LONG[5:9])
    await stage.settled()
    rows = [*LONG, LONG[3], LONG[19]]
    for brief in ("partial 200", "hit 200"):
        got = await stage.ask(PATH, {"tokens": rows})
        assert (got.brief, got.body) == (brief, text(rows))
        assert sizes(server) == [4, 5, 7, 4]
        await stage.settled()
    assert stage.stored == len(LONG)
    assert (stage.counters.hits, stage.counters.partial_hits, stage.counters.misses) == (1, 1, 1)


@portioned()
async def test_equal_lists(stage: Stage, server: Server) -> None:
    """Two clients with one list have each row asked for once, and both have all of it."""
    got = await asyncio.gather(*(stage.ask(PATH, {"tokens": LONG}) for _ in range(2)))
    assert [one.body for one in got] == [text(LONG)] * 2
    assert sum(sizes(server)) == len(LONG)


@portioned()
async def test_overlapping_lists(stage: Stage, server: Server) -> None:
    """Of two lists that have rows in common, these are asked for once, whoever asks first; each
    client has its own list, in its order."""
    one, other = LONG[:15], LONG[:4:-1]
    got = await asyncio.gather(*(stage.ask(PATH, {"tokens": rows}) for rows in (one, other)))
    assert [each.body for each in got] == [text(one), text(other)]
    assert sum(sizes(server)) == len(LONG)
    await stage.settled()
    assert stage.stored == len(LONG)


@portioned()
async def test_answers_of_another_length(stage: Stage, server: Server) -> None:
    """Where upstream answers a portion with fewer rows, or with more, nothing of that is used: the
    client gets what upstream makes of its whole list."""
    for change in (-1, 1):

        def miscount(asked: Asked) -> bool:
            rows = asked.json["tokens"]
            texts = [" ".join(map(str, ids)) for ids in [*rows, *rows][: len(rows) + change]]  # noqa: B023
            asked.answer(200, {"text": texts})
            return True

        server.says = miscount
        got = await stage.ask(PATH, {"tokens": LONG})
        assert (got.kind, got.reason) == ("bypass", Reason.UNREADABLE)
        await stage.settled()
        assert stage.stored == 0


@portioned()
async def test_refused_portion(stage: Stage, server: Server) -> None:
    """What upstream makes of a row that it refuses is the client's to know: it gets the whole
    call."""

    def refuse(asked: Asked) -> bool:
        is_refused = LONG[12] in asked.json["tokens"]
        if is_refused:
            asked.answer(400, {"message": "row 4"})
        return is_refused

    server.says = refuse
    for _ in range(3):
        got = await stage.ask(PATH, {"tokens": LONG})
        assert (got.kind, got.reason) == ("bypass", Reason.UNREADABLE)
    # That says nothing of what upstream makes of other parts of lists.
    assert (await stage.ask(PATH, {"tokens": LONG[:12]})).brief == "partial 200"


@portioned()
async def test_failed_portion(
    stage: Stage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of the server is the answer, and counted once; what has come before it is stored,
    and the portions behind it are not asked for."""
    monkeypatch.setattr(lists, "AT_ONCE", 1)

    def fail(asked: Asked) -> bool:
        is_failing = LONG[12] in asked.json["tokens"]
        if is_failing:
            asked.answer(503, {"message": "busy"})
        return is_failing

    server.says = fail
    got = await stage.ask(PATH, {"tokens": LONG})
    assert got.brief == "miss 503 status" and got.json == {"message": "busy"}
    await stage.settled()
    assert (stage.stored, stage.counters.misses, sizes(server)) == (8, 1, [8, 8])


@portioned(4)
async def test_portions_at_once(stage: Stage, server: Server) -> None:
    """So many portions are under way at a time, and no more. Where all of them fail at once, their
    client has one answer."""
    held: list[Asked] = []

    def hold(asked: Asked) -> bool:
        held.append(asked)
        return True

    server.says = hold
    for status in (503, 200):
        task = stage.ask(PATH, {"tokens": LONG})
        await until(lambda: len(held) == lists.AT_ONCE)
        assert sizes(server) == [4] * lists.AT_ONCE and len(LONG) > 4 * lists.AT_ONCE
        if status == 200:
            server.says = lambda asked: False
        for asked in reversed(held):  # they come together in the client's order all the same
            told = asked.json["tokens"]
            asked.answer(status, orjson.loads(text(told)) if status == 200 else {"n": len(told)})
        held.clear()
        server.asked.clear()
        got = await task
        assert (got.kind, got.status) == ("miss", status)
    assert got.body == text(LONG)
    assert stage.counters.misses == 2


@portioned(4)
async def test_no_more_than_is_stored(
    stage: Stage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next portion is asked for when one is stored, so that what is not stored does not pile
    up in memory while upstream is quick."""
    monkeypatch.setattr(lists, "AT_ONCE", 1)
    stored: list[int] = []

    def note(asked: Asked) -> bool:
        stored.append(stage.stored)
        return False

    server.says = note
    assert (await stage.ask(PATH, {"tokens": LONG})).body == text(LONG)
    assert stored == [0, 4, 8, 12, 16]


@portioned()
async def test_another_model_between(stage: Stage, server: Server) -> None:
    """One answer is of one model: where another one comes in between, all is asked for anew."""
    changes = iter([True])

    def change(asked: Asked) -> bool:
        if LONG[9] in asked.json["tokens"] and next(changes, False):
            stage.script.says["/model_info"] = (200, {"model_path": "other"})
            stage.upstream.inquiry.doubt()
        return False

    server.says = change
    got = await stage.ask(PATH, {"tokens": LONG})
    assert (got.kind, got.status, got.body) == ("miss", 200, text(LONG))
    firsts = [rows for rows in server.asked if rows[0] == LONG[0]]
    assert len(firsts) == 2


@portioned()
async def test_client_leaves(stage: Stage, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose client leaves is counted once; what had come for it is stored, and the rest is
    not asked for."""
    monkeypatch.setattr(lists, "AT_ONCE", 1)
    is_held = asyncio.Event()

    def hold(asked: Asked) -> bool:
        if is_second := LONG[8] in asked.json["tokens"]:
            is_held.set()
        return is_second

    server.says = hold
    task = stage.ask(PATH, {"tokens": LONG})
    await is_held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stage.settled()
    assert (stage.counters.misses, stage.stored, sizes(server)) == (1, 8, [8, 8])


@portioned(mode=Mode.OFFLINE)
async def test_offline(stage: Stage, server: Server) -> None:
    """Nobody is asked for what is not stored."""
    got = await stage.ask(PATH, {"tokens": LONG})
    assert got.status == 504 and not server.asked


@portioned()
async def test_too_many(stage: Stage, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of more rows than that is passed on, and so is what is not understood."""
    monkeypatch.setattr(lists, "MAX_ROWS", 19)
    for rows, reason in ((LONG, Reason.TOO_LARGE), ([*LONG, "x"], Reason.MALFORMED)):
        got = await stage.ask(PATH, {"tokens": rows})
        assert (got.kind, got.reason) == ("bypass", reason)


@portioned(100)
async def test_one_portion(stage: Stage, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is long for other reasons is a call like any other."""
    monkeypatch.setattr(lists, "LONG", 20)
    for brief in ("miss 200", "hit 200"):
        got = await stage.ask(PATH, {"tokens": LONG})
        assert (got.brief, got.body) == (brief, text(LONG))
        await stage.settled()
    assert server.asked == [LONG]


LENGTHS = (1_000, 8_000)
"""Lengths of lists."""


def test_work_grows_with_the_list() -> None:
    """A list that is eight times as long takes about eight times the work; and none of it is done
    in one go: there are many turns of the loop, in which others are answered."""
    work, turns = [], []

    async def count() -> None:
        while True:
            turns[-1] += 1
            await asyncio.sleep(0)

    for length in LENGTHS:

        @portioned(100)
        async def answer(stage: Stage, server: Server) -> None:
            rows = [[k] for k in range(length)]  # noqa: B023
            assert (await stage.ask(PATH, {"tokens": rows})).brief == "miss 200"
            await stage.settled()
            turns.append(0)
            counting = asyncio.ensure_future(count())
            began = time.process_time()
            got = await stage.ask(PATH, {"tokens": rows})
            work.append(time.process_time() - began)
            counting.cancel()
            assert (got.brief, got.body) == ("hit 200", text(rows))

        answer()
    assert work[1] < 20 * work[0]
    assert all(count > length / 100 for count, length in zip(turns, LENGTHS, strict=True))

"""What is stored, for people."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sglang_cached_addon import catalog
from sglang_cached_addon.catalog import Ambiguous, Catalog
from sglang_cached_addon.catalog.entry import Models
from sglang_cached_addon.catalog.query import BadQuery, NotFound, Query
from sglang_cached_addon.core.places import pool_of
from sglang_cached_addon.service.runs import Runs
from sglang_cached_addon.store.memory import MemoryStore
from tests.catalog.test_shelves import DIALECTS, add, fill, key_of

MODELS = Models({b"model 0 ": "even", b"model 1 ": "odd"}, b"model 1 ")


def run(work: Callable[[Catalog, Runs], Awaitable[None]]) -> None:
    async def all_of() -> None:
        store, runs = MemoryStore(keeps_calls=True), Runs()
        fill(store)
        await work(Catalog(store, DIALECTS, lambda: MODELS, runs), runs)

    asyncio.run(all_of())


async def page(known: Catalog, **query: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await known.entries(Query(**query)))
    return found


def test_pages() -> None:
    """A page has as many as are wanted, and says where the next one begins."""

    async def work(known: Catalog, runs: Runs) -> None:
        first = await page(known, limit=15)
        assert (len(first["entries"]), first["total"], first["stopped"]) == (15, 20, None)
        assert {entry["model"] for entry in first["entries"]} == {"even", "odd"}
        assert first["entries"][0]["is_current"]
        second = await page(known, limit=15, cursor=first["next"])
        assert (len(second["entries"]), second["next"]) == (5, None)
        assert len((await page(known, model="even"))["entries"]) == 10
        with pytest.raises(NotFound):
            await page(known, model="none")

    run(work)


def test_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes too long says so, and how to go on: in the end all is found."""
    monkeypatch.setattr(catalog, "SECONDS", 0.0)

    async def work(known: Catalog, runs: Runs) -> None:
        found, cursor, pages = 0, "", 0
        while cursor is not None:
            one = await page(known, cursor=cursor, text="ask")
            found, cursor, pages = found + len(one["entries"]), one["next"], pages + 1
            assert (one["stopped"] is None) is (cursor is None)
        assert found == 20 and pages > 5

    run(work)


def test_runs() -> None:
    """Entries are found by the runs that have used them, and say which have used which sample."""

    async def work(known: Catalog, runs: Runs) -> None:
        for name, places in (("a", 3), ("b", 1)):
            for place in range(places):
                runs.use(name, 1.0).places.take(pool_of(key_of(5)), place)
        for name in ("a", "b"):
            assert [e["key"] for e in (await page(known, run=name))["entries"]] == [key_of(5).hex()]
        with pytest.raises(NotFound):
            await page(known, run="c")
        entry = json.loads(await known.entry(key_of(5).hex()))
        assert [answer["runs"] for answer in entry["answers"]] == [["a", "b"], ["a"], ["a"]]

    run(work)


def test_keys() -> None:
    """A key is found by how it begins, if no other begins so."""

    async def work(known: Catalog, runs: Runs) -> None:
        assert await known.find(key_of(7).hex()) == key_of(7)
        assert await known.find(key_of(17)[:15].hex()) == key_of(17)
        with pytest.raises(Ambiguous) as raised:
            await known.find(key_of(7)[:8].hex())
        assert len(raised.value.keys) == 10
        for prefix in ("0123", "00" * 32, key_of(30).hex()):
            with pytest.raises(NotFound):
                await known.find(prefix)
        with pytest.raises(BadQuery):
            await known.entry("x")

    run(work)


def test_what_is_removed_meanwhile() -> None:
    """A list is made while the store changes."""

    async def work(known: Catalog, runs: Runs) -> None:
        pages = [asyncio.create_task(page(known)) for _ in range(5)]
        store = known.store
        assert isinstance(store, MemoryStore)
        for number in range(20):
            store.remove(key_of(number))
            add(store, number + 100, "new")
            await asyncio.sleep(0)
        for one in await asyncio.gather(*pages):
            assert one["stopped"] is None

    run(work)

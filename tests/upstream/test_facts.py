"""What is known of upstream, and outlives the process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.store.state import StateFile
from sglang_cached_addon.upstream import Health, Upstream
from sglang_cached_addon.upstream.facts import Facts, FactsWriter
from tests.ports import dead_url
from tests.tables import each
from tests.upstream.scripted import (
    Kept,
    admits,
    asking,
    bounded,
    changed,
    refusal,
    run,
    serving,
    settled,
    until,
)


def said(upstream: Upstream) -> tuple[Any, ...]:
    """What is known of it."""
    model = upstream.model
    return model.identity, model.fingerprint, model.epochs, model.names


@bounded
async def test_state_file(tmp_path: Path) -> None:
    """After a restart all is known that was known before, also while upstream is not there."""
    async with serving() as script:
        file = StateFile(tmp_path)
        async with asking(script.url, file) as upstream:
            assert await refusal(upstream) is None
            await changed(upstream, change=Change.ADAPTER, adapter="x")
            await changed(upstream)
            assert await refusal(upstream) is None
            await until(lambda: not file.load()["unsettled"])
            await until(lambda: file.load()["epochs"] == upstream.model.epochs.as_json())
            known = said(upstream)
        script.stop()
        await settled()
        async with asking(script.url, StateFile(tmp_path)) as upstream:
            assert said(upstream) == known
            assert not admits(upstream)  # it is asked first
            await until(lambda: upstream.inquiry.health is Health.DOWN)


@bounded
async def test_state_file_of_another_url() -> None:
    """What one server has said is not taken for another's word; but offline there is no other."""
    kept = Kept()
    async with serving() as script, asking(script.url, kept) as upstream:
        assert await refusal(upstream) is None
        await changed(upstream)
        assert await refusal(upstream) is None
        await until(lambda: kept.document["epochs"] == upstream.model.epochs.as_json())
    async with asking(dead_url(), kept) as other:
        assert other.model.identity is None
        assert said(other)[2:] == said(upstream)[2:]
        assert await refusal(other) is Reason.NO_MODEL
    async with asking(dead_url(), kept, is_offline=True) as other:
        assert other.model.fingerprint == upstream.model.fingerprint


@bounded
async def test_who_was_let_in() -> None:
    """After a restart everybody is let in where upstream was open to everybody, and nobody where it
    asked for keys; but only while it is down, as else it can say so itself."""
    for keys, reason in ((None, None), ({"key"}, Reason.UNAUTHORIZED)):
        kept = Kept()
        async with serving(keys=keys) as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream, "key") is None
                assert await refusal(upstream) is reason
                await until(lambda: "open" in kept.document)  # noqa: B023
            script.stop()
            await settled()
            async with asking(script.url, kept) as upstream:
                assert await upstream.inquiry.check() is Health.DOWN
                for key in ("key", "other", None):
                    assert await refusal(upstream, key) is reason
                assert await refusal(upstream, model="x") is Reason.UNAUTHORIZED
            script.keys = {"key"}
            await script.start()
            async with asking(script.url, kept) as upstream:
                for key in ("other", None):
                    assert await refusal(upstream, key) is Reason.UNAUTHORIZED


IDENTITY = {"digest": "d", "model": "m", "weight_version": None, "incarnation": ""}


ODD: list[dict[str, Any]] = [
    {"epochs": 7},
    {"epochs": {"last": 1, "floor": 2, "models": {}, "adapters": {}}},
    {"models": 7},
    {"models": {"a": 1}},
    {"url": 7},
    {"unsettled": "no"},
    {"open": 7},
    {"open": [["POST", "/generate"]]},
    {"open": [["POST", "/generate", 7]]},
    {"identity": 7},
    {"identity": {"odd": 1}},
    {"identity": {**IDENTITY, "digest": 7}},
    {"identity": {**IDENTITY, "weight_version": 7}},
]


@each("odd", ODD)
@bounded
async def test_a_file_that_makes_no_sense(
    odd: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is moved aside, by its name; and as it is not known any more which weights the stored
    answers are of, none of them is given."""
    caplog.clear()
    (tmp_path / "state.json.broken").unlink(missing_ok=True)
    async with serving() as script:
        document = {"url": script.url, "identity": IDENTITY, **odd}
        StateFile(tmp_path).save(document)
        before = int(time.time())
        async with asking(script.url, StateFile(tmp_path)) as upstream:
            assert upstream.model.identity is None
            assert upstream.model.epochs.floor >= before
            assert await refusal(upstream) is None
            assert upstream.model.fingerprint != Epochs().fingerprint(upstream.model.identity)
            await until((tmp_path / "state.json").exists)
    assert "state.json" in caplog.text
    assert "moved to state.json.broken" in caplog.text


@bounded
async def test_written_at_the_end() -> None:
    """What was not worth writing at once is written when the process ends."""
    kept = Kept()
    async with serving() as script, asking(script.url, kept) as upstream:
        assert await refusal(upstream) is None
        await until(lambda: kept.document.get("identity"))
        script.says = {}
        while upstream.model.identity:  # the first round may be one that began before
            await upstream.inquiry.check()
        assert kept.document["identity"]
    assert kept.document["identity"] is None


def test_the_last_document_is_the_newest() -> None:
    """A document whose thread is slow to begin is not written over what was written at the end."""
    may_begin = threading.Event()

    class Slow(ThreadPoolExecutor):
        def submit(self, work: Callable[..., Any], /, *args: Any) -> Any:  # type: ignore[override]
            return super().submit(lambda: may_begin.wait(20) and work(*args))

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(pool)
        kept, known = Kept(), ["before"]
        writer = FactsWriter(kept, lambda: Facts(url=known[0]))
        written = writer.remember()
        await settled()
        known[0] = "at the end"
        writer.close()
        assert kept.document["url"] == "at the end"
        may_begin.set()
        await asyncio.wait([written])
        pool.shutdown()
        assert kept.document["url"] == "at the end"

    with Slow(1) as pool:
        run(test)


@bounded
async def test_disk_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk does not fail the request that changes the weights."""

    class Full(Kept):
        def save(self, document: dict[str, Any]) -> None:
            raise OSError("no space left")

    async with serving() as script, asking(script.url, Full()) as upstream:
        assert await refusal(upstream) is None
        await changed(upstream)
        assert await refusal(upstream) is None
    assert "no space left" in caplog.text

"""What the cache does with mitmproxy's flows, on flows that the test makes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from mitmproxy.http import HTTPFlow, Response

from sglang_cached_addon.addon import SglangCached
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.proxy.verdicts import MARKERS
from tests.replayer import Replayer, replaying
from tests.simulator import Fault, Simulator
from tests.test_addon import PAIR, addon, make_flow, master, running_addon
from tests.upstream.scripted import until

__all__ = ["addon", "master"]


def stored(addon: SglangCached) -> int:
    assert addon.parts
    return addon.parts.store.index.samples


@pytest.fixture
def upstream() -> Iterator[Replayer]:
    """A server that answers with the recorded pair."""
    with replaying() as server:
        server.pair = PAIR
        yield server


async def pass_through(addon: SglangCached, flow: HTTPFlow, status: int = 200) -> HTTPFlow:
    """The hooks of one flow. What the addon does not answer is answered with this status."""
    for hook in (addon.addons[0].requestheaders, addon.addons[0].request):
        if waits := hook(flow):
            await waits
    if flow.response:
        flow.server_conn.timestamp_start = None
    else:
        flow.response = Response.make(status, b"", {"Cache-Status": "other; hit"})
    addon.addons[0].responseheaders(flow)
    addon.addons[0].response(flow)
    return flow


def test_people_recognise_a_hit(addon: SglangCached, upstream: Replayer, tmp_path: Path) -> None:
    """In mitmweb a cached flow has the replay mark, and says what happened in its comment."""

    async def run() -> list[HTTPFlow]:
        with running_addon(addon, tmp_path, f"reverse:{upstream.url}"):
            flows = [await pass_through(addon, make_flow())]
            await until(lambda: stored(addon))
            flows.append(await pass_through(addon, make_flow()))
            await until(lambda: not addon.active)
            return flows

    miss, hit = asyncio.run(run())
    key = "key [0-9a-f]{32}"
    assert (miss.is_replay, hit.is_replay) == (None, "response")
    assert re.fullmatch(rf"miss 0/1, fetch \S+, {key}", miss.comment)
    assert re.fullmatch(f"hit 1/1, {key}", hit.comment)
    assert [flow.marked for flow in (miss, hit)] == [MARKERS[Kind.MISS], MARKERS[Kind.HIT]]
    assert hit.response and miss.response
    assert hit.response.content == miss.response.content
    assert len(upstream.received) == 1
    for flow in (miss, hit):
        flow.copy()
        orjson.dumps(flow.metadata)


def test_answered_by_another_addon(addon: SglangCached, master: Any) -> None:
    """A flow that another script answers is left alone, and not stored."""
    flow = make_flow()
    addon.addons[0].requestheaders(flow)
    flow.response = Response.make(418)
    assert addon.addons[0].request(flow) is None
    flow.server_conn.timestamp_start = None
    addon.addons[0].responseheaders(flow)
    addon.addons[0].response(flow)
    assert flow.response.status_code == 418
    assert stored(addon) == 0
    assert addon.active == 0


def test_other_modes_are_left_alone(addon: SglangCached, master: Any) -> None:
    """A flow of a regular proxy is none of ours, whatever its path."""
    flow = asyncio.run(pass_through(addon, make_flow(mode="regular")))
    assert flow.response
    assert "X-Cache" not in flow.response.headers


def test_an_upstream_cache_keeps_its_word(
    addon: SglangCached, upstream: Replayer, tmp_path: Path
) -> None:
    """Cache-Status of a cache behind us stays in the list, before ours."""
    headers = [*PAIR["response"]["headers"], ["Cache-Status", "other; hit"]]
    upstream.pair = {**PAIR, "response": {**PAIR["response"], "headers": headers}}
    paths = ("/generate", "/generate?x=1")

    async def run() -> list[HTTPFlow]:
        with running_addon(addon, tmp_path, f"reverse:{upstream.url}"):
            return [await pass_through(addon, make_flow(path)) for path in paths]

    said = [flow.response.headers["Cache-Status"] for flow in asyncio.run(run()) if flow.response]
    assert said[0].startswith("other; hit, sglang-cached; fwd=miss; stored; key=")
    assert said[1].startswith("other; hit, sglang-cached; fwd=bypass; detail=query")


def test_a_client_that_leaves(
    addon: SglangCached, simulator: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is fetched for a client that has left is ended and logged, and mitmproxy does not ask
    upstream itself; other clients get what they wait for."""
    caplog.set_level(logging.INFO)

    async def run() -> list[int]:
        simulator.faults += [Fault.HOLD] * 2
        flows = [make_flow(), make_flow()]
        flows[1].request.content = b'{"text": "other"}'
        with running_addon(addon, tmp_path, f"reverse:{simulator.url}"):
            tasks = []
            for flow in flows:
                assert addon.addons[0].requestheaders(flow) is None
                waits = addon.addons[0].request(flow)
                assert waits
                tasks.append(asyncio.ensure_future(waits))
            await until(lambda: simulator.waiting == 2)
            addon.client_disconnected(flows[0].client_conn)
            await until(tasks[0].done)
            await until(lambda: simulator.aborted == 1)
            simulator.release()
            await until(tasks[1].done)
            addon.addons[0].response(flows[1])
            await until(lambda: not addon.active)
        return [flow.response.status_code for flow in flows if flow.response]

    assert asyncio.run(run()) == [499, 200]
    lines = [line for line in caplog.messages if "/generate" in line]
    assert ["cut" in line for line in lines] == [True, False], lines


def test_a_change_that_is_lost(addon: SglangCached, upstream: Replayer, tmp_path: Path) -> None:
    """An update of the weights that had reached upstream when its connection was lost may have been
    carried out: answers of the old weights are not given any more."""

    async def run() -> str:
        with running_addon(addon, tmp_path, f"reverse:{upstream.url}"):
            await pass_through(addon, make_flow())
            await until(lambda: stored(addon))
            flow, hooks = make_flow("/update_weights_from_disk"), addon.addons[0]
            waits = hooks.requestheaders(flow)
            assert waits
            await waits
            hooks.request(flow)
            hooks.error(flow)
            again = await pass_through(addon, make_flow())
            await until(lambda: not addon.active)
            assert again.response
            return again.response.headers["X-Cache"]

    assert asyncio.run(run()) == "MISS"

"""The addon's hooks, on mitmproxy's own test flows."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from mitmproxy import exceptions
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.http import Headers, HTTPFlow, Response
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import taddons, tflow, tutils

from sglang_cached_addon.addon import SglangCached
from sglang_cached_addon.proxy import connections, lane
from tests.conftest import corpus
from tests.replayer import Replayer, replaying
from tests.simulator import Fault, Simulator
from tests.upstream.scripted import until

PAIR = next(pair for pair in corpus("generate-n1"))
URL = "reverse:http://127.0.0.1:9"


def make_flow(path: str = "/generate", mode: str = URL) -> HTTPFlow:
    body = PAIR["request"]["body"].encode()
    headers = Headers(content_type="application/json", content_length=str(len(body)))
    request = tutils.treq(method=b"POST", path=path.encode(), content=body, headers=headers)
    flow = tflow.tflow(req=request)
    flow.client_conn.proxy_mode = ProxyMode.parse(mode)
    return flow


@pytest.fixture
def addon() -> SglangCached:
    return SglangCached()


@contextmanager
def running_addon(
    addon: SglangCached, folder: Path, url: str = URL, **options: Any
) -> Iterator[Any]:
    """A master with the addon loaded and running on a cache folder; in a loop."""
    tctx = taddons.context(Proxyserver(), addon, loadcore=False)
    with tctx:
        tctx.configure(addon, mode=[url], sglang_cache_path=str(folder), **options)
        addon.running()
        try:
            yield tctx
        finally:
            addon.done()


@pytest.fixture
def master(addon: SglangCached, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        async def enter() -> Any:
            return stack.enter_context(running_addon(addon, tmp_path))

        yield asyncio.run(enter())


@pytest.fixture
def upstream() -> Iterator[Replayer]:
    """A server that answers with the recorded pair."""
    with replaying() as server:
        server.pair = PAIR
        yield server


async def pass_through(addon: SglangCached, flow: HTTPFlow, status: int = 200) -> HTTPFlow:
    """The hooks of one flow. What the addon does not answer is answered with this status."""
    for hook in (addon.requestheaders, addon.request):
        if waits := hook(flow):
            await waits
    if flow.response:
        flow.server_conn.timestamp_start = None
    else:
        flow.response = Response.make(status, b"", {"Cache-Status": "other; hit"})
    addon.responseheaders(flow)
    addon.response(flow)
    return flow


def test_people_recognise_a_hit(addon: SglangCached, upstream: Replayer, tmp_path: Path) -> None:
    """In mitmweb a cached flow has the replay mark, and says what happened in its comment."""

    async def run() -> list[HTTPFlow]:
        with running_addon(addon, tmp_path, f"reverse:{upstream.url}"):
            flows = [await pass_through(addon, make_flow())]
            await until(lambda: addon.reports.stats()["total_responses"])
            flows.append(await pass_through(addon, make_flow()))
            await until(lambda: not addon.active)
            return flows

    miss, hit = asyncio.run(run())
    key = r'key="[0-9a-f]{32}"'
    assert (miss.is_replay, hit.is_replay) == (None, "response")
    assert re.fullmatch(f"cache: fwd=miss; stored; {key}", miss.comment)
    assert re.fullmatch(f"cache: hit; {key}", hit.comment)
    assert hit.response and miss.response
    assert hit.response.content == miss.response.content
    assert len(upstream.received) == 1
    for flow in (miss, hit):
        flow.copy()
        orjson.dumps(flow.metadata)


def test_answered_by_another_addon(addon: SglangCached, master: Any) -> None:
    """A flow that another script answers is left alone, and not stored."""
    flow = make_flow()
    addon.requestheaders(flow)
    flow.response = Response.make(418)
    assert addon.request(flow) is None
    flow.server_conn.timestamp_start = None
    addon.responseheaders(flow)
    addon.response(flow)
    assert flow.response.status_code == 418
    assert addon.reports.stats()["total_responses"] == 0
    assert addon.active == 0


def test_other_modes_are_left_alone(addon: SglangCached, master: Any) -> None:
    """A flow of a regular proxy is none of ours, whatever its path."""
    flow = asyncio.run(pass_through(addon, make_flow(mode="regular")))
    assert flow.response
    assert "X-Cache" not in flow.response.headers


@pytest.mark.parametrize(
    ("path", "said"),
    [("/generate", "fwd=miss; stored; key="), ("/generate?x=1", "fwd=bypass; detail=query")],
)
def test_an_upstream_cache_keeps_its_word(
    path: str, said: str, addon: SglangCached, upstream: Replayer, tmp_path: Path
) -> None:
    """Cache-Status of a cache behind us stays in the list, before ours."""
    headers = [*PAIR["response"]["headers"], ["Cache-Status", "other; hit"]]
    upstream.pair = {**PAIR, "response": {**PAIR["response"], "headers": headers}}

    async def run() -> HTTPFlow:
        with running_addon(addon, tmp_path, f"reverse:{upstream.url}"):
            return await pass_through(addon, make_flow(path))

    flow = asyncio.run(run())
    assert flow.response
    value = flow.response.headers["Cache-Status"]
    assert value.startswith(f"other; hit, sglang-cached; {said}")


def test_a_client_that_leaves(addon: SglangCached, simulator: Simulator, tmp_path: Path) -> None:
    """Without an answer of ours mitmproxy would ask upstream itself, for nobody."""

    async def run() -> HTTPFlow:
        simulator.faults.append(Fault.HOLD)
        flow = make_flow()
        with running_addon(addon, tmp_path, f"reverse:{simulator.url}"):
            assert addon.requestheaders(flow) is None
            waits = addon.request(flow)
            assert waits
            task = asyncio.ensure_future(waits)
            await until(lambda: simulator.waiting)
            addon.client_disconnected(flow.client_conn)
            await task
            await until(lambda: simulator.aborted == 1)
            await until(lambda: not addon.active)
        return flow

    flow = asyncio.run(run())
    assert flow.response
    assert flow.response.status_code == 499


LOST, HUNG_UP = "the connection was lost", "the client has hung up before all of it was there"


@pytest.mark.parametrize(
    ("end", "is_changed"), [(200, True), (404, False), (LOST, True), (HUNG_UP, False)]
)
def test_a_change_of_the_model(
    end: int | str, is_changed: bool, addon: SglangCached, upstream: Replayer, tmp_path: Path
) -> None:
    """Answers of the old weights are not given for those of the new; and what upstream refused, or
    never had as a whole, changes nothing."""

    async def run() -> None:
        with running_addon(addon, tmp_path, f"reverse:{upstream.url}"):
            await pass_through(addon, make_flow())
            await until(lambda: addon.reports.stats()["total_responses"])
            flow = make_flow("/update_weights_from_disk")
            if isinstance(end, int):
                await pass_through(addon, flow, end)
            else:
                waits = addon.requestheaders(flow)
                assert waits
                if end is LOST:
                    await waits
                    addon.request(flow)
                    addon.error(flow)
                else:
                    addon.client_disconnected(flow.client_conn)
                    await waits
            again = await pass_through(addon, make_flow())
            assert again.response
            kind = "MISS" if is_changed else "HIT"
            assert again.response.headers["X-Cache"] == kind
            await until(lambda: not addon.active)

    asyncio.run(run())


@pytest.mark.parametrize("path", ["", "   "])
def test_bad_options(path: str, addon: SglangCached) -> None:
    """A wrong option is refused by name, before anything is opened."""

    async def run() -> None:
        with taddons.context(Proxyserver(), addon, loadcore=False) as tctx:
            tctx.configure(addon, sglang_cache_path=path)

    with pytest.raises(exceptions.OptionsError, match="sglang_cache_path"):
        asyncio.run(run())


def test_folder_cannot_change_while_open(addon: SglangCached, master: Any, tmp_path: Path) -> None:
    """An open cache is not left behind by a change of options."""
    with pytest.raises(exceptions.OptionsError, match="while the cache is open"):
        master.configure(addon, sglang_cache_path=str(tmp_path / "other"))


@pytest.mark.parametrize("mode", [["regular"], [URL, "reverse:http://127.0.0.1:8@9999"]])
def test_needs_one_upstream(mode: list[str], addon: SglangCached, tmp_path: Path) -> None:
    """Without exactly one upstream there is no cache, and it says why."""

    async def run() -> None:
        with taddons.context(Proxyserver(), addon, loadcore=False) as tctx:
            tctx.configure(addon, mode=mode, sglang_cache_path=str(tmp_path))
            addon.running()

    asyncio.run(run())
    assert addon.failure
    assert "exactly one upstream" in addon.failure
    assert addon.parts is None


def test_a_client_that_left_is_forgotten(
    addon: SglangCached, master: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection that there ever was would stay in memory."""

    class Connection:
        stages: tuple[Any, ...] = ()

    opened = []

    def open_connection(handler: Any) -> Any:
        connection = Connection()
        opened.append(weakref.ref(connection))
        return connection

    monkeypatch.setattr(connections, "open_connection", open_connection)
    monkeypatch.setattr(lane, "open_lane", lambda *args: None)
    client = make_flow().client_conn
    handlers = master.master.addons.get("proxyserver").connections
    handlers[client.id] = SimpleNamespace(client=client)
    addon.client_connected(client)
    assert opened[0]()
    assert addon.client_disconnected(client) is None
    gc.collect()
    assert opened[0]() is None
    del handlers[client.id]

"""The addon's hooks, on mitmproxy's own test flows."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from mitmproxy import exceptions
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client
from mitmproxy.http import Headers, HTTPFlow, Response
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import taddons, tflow, tutils

from sglang_cached_addon import express
from sglang_cached_addon.addon import SglangCached
from tests.conftest import corpus

PAIR = next(pair for pair in corpus("generate-n1"))
URL = "reverse:http://127.0.0.1:9"


def make_flow(path: str = "/generate", mode: str = URL) -> HTTPFlow:
    body = PAIR["request"]["body"].encode()
    headers = Headers(content_type="application/json", content_length=str(len(body)))
    request = tutils.treq(method=b"POST", path=path.encode(), content=body, headers=headers)
    flow = tflow.tflow(req=request)
    flow.client_conn.proxy_mode = ProxyMode.parse(mode)
    return flow


def make_response() -> Response:
    body = PAIR["response"]["body"].encode()
    return Response.make(200, body, {"Content-Type": "application/json"})


@pytest.fixture
def addon() -> SglangCached:
    return SglangCached()


@pytest.fixture
def master(addon: SglangCached, tmp_path: Path) -> Iterator[Any]:
    """A master with the addon loaded and running on a cache folder."""

    async def enter() -> Any:
        tctx = taddons.context(Proxyserver(), addon, loadcore=False)
        tctx.__enter__()
        tctx.configure(addon, mode=[URL], sglang_cache_path=str(tmp_path))
        addon.running()
        return tctx

    tctx = asyncio.run(enter())
    yield tctx
    addon.done()
    tctx.__exit__(None, None, None)


async def pass_through(addon: SglangCached, flow: HTTPFlow) -> None:
    """The hooks of one flow, with an upstream that answers with the recorded pair."""
    addon.requestheaders(flow)
    assert addon.request(flow) is None
    if flow.response is None:
        flow.response = make_response()
        addon.responseheaders(flow)
    else:
        flow.server_conn.timestamp_start = None
        addon.responseheaders(flow)
    addon.response(flow)


def test_people_recognise_a_hit(addon: SglangCached, master: Any) -> None:
    """In mitmweb a cached flow has the replay mark, and says what happened in its comment."""

    async def run() -> list[HTTPFlow]:
        flows = [make_flow(), make_flow()]
        for flow in flows:
            await pass_through(addon, flow)
        return flows

    miss, hit = asyncio.run(run())
    assert (miss.is_replay, miss.comment) == (None, "cache: fwd=miss; stored")
    assert (hit.is_replay, hit.comment) == ("response", "cache: hit")
    assert hit.response and miss.response
    assert hit.response.content == miss.response.content
    for flow in (miss, hit):
        flow.copy()
        orjson.dumps(flow.metadata)
    assert addon.active == 0


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
    assert addon.stats()["total_responses"] == 0
    assert addon.active == 0


def test_other_modes_are_left_alone(addon: SglangCached, master: Any) -> None:
    """A flow of a regular proxy is none of ours, whatever its path."""
    flow = make_flow(mode="regular")
    asyncio.run(pass_through(addon, flow))
    assert flow.response
    assert "X-Cache" not in flow.response.headers


def test_an_upstream_cache_keeps_its_word(addon: SglangCached, master: Any) -> None:
    """Cache-Status of a cache behind us stays in the list, before ours."""
    flow = make_flow()
    addon.requestheaders(flow)
    assert addon.request(flow) is None
    flow.response = make_response()
    flow.response.headers["Cache-Status"] = "other; hit"
    addon.responseheaders(flow)
    addon.response(flow)
    value = flow.response.headers["Cache-Status"]
    assert value == "other; hit, sglang-cached; fwd=miss; stored"


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
    assert addon.store is None


def test_a_client_that_left_is_forgotten(
    addon: SglangCached, master: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection that there ever was would stay in memory."""

    class Lane:
        """Knows its client, as the real one does."""

        def __init__(self, client: Client) -> None:
            self.client = client

    opened = []

    def open_lane(handler: Any, *args: Any) -> Lane:
        lane = Lane(handler)
        opened.append(weakref.ref(lane))
        return lane

    monkeypatch.setattr(express, "open_lane", open_lane)
    client = make_flow().client_conn
    connections = master.master.addons.get("proxyserver").connections
    connections[client.id] = client
    addon.client_connected(client)
    assert opened[0]()
    assert addon.client_disconnected(client) is None
    gc.collect()
    assert opened[0]() is None
    del connections[client.id]

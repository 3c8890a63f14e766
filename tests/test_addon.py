"""The addon: its options, and the opening of the cache."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.http import Headers, HTTPFlow
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import taddons, tflow, tutils

from sglang_cached_addon.addon import SglangCached
from sglang_cached_addon.proxy import connections, lane
from sglang_cached_addon.proxy.delivery import Delivery
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
            tctx.master.addons.remove(addon)


@pytest.fixture
def master(addon: SglangCached, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        async def enter() -> Any:
            return stack.enter_context(running_addon(addon, tmp_path))

        yield asyncio.run(enter())


@pytest.mark.parametrize("path", ["", "   "])
def test_bad_options(path: str, addon: SglangCached) -> None:
    """A wrong option is refused by name, before anything is opened."""

    async def run() -> None:
        with taddons.context(Proxyserver(), addon, loadcore=False) as tctx:
            try:
                tctx.configure(addon, sglang_cache_path=path)
            finally:
                tctx.master.addons.remove(addon)

    with pytest.raises(exceptions.OptionsError, match="sglang_cache_path"):
        asyncio.run(run())


def test_folder_cannot_change_while_open(addon: SglangCached, master: Any, tmp_path: Path) -> None:
    """An open cache is not left behind by a change of options."""
    with pytest.raises(exceptions.OptionsError, match="while the cache is open"):
        master.configure(addon, sglang_cache_path=str(tmp_path / "other"))


def test_a_client_that_left_is_forgotten(
    addon: SglangCached, master: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that has ended does not stay in memory."""

    class Connection:
        stages: tuple[Any, ...] = ()
        unread = 0
        delivery = Delivery(lambda: 0)

    opened = []

    def open_connection(handler: Any) -> Any:
        connection = Connection()
        opened.append(weakref.ref(connection))
        return connection

    monkeypatch.setattr(connections, "open_connection", open_connection)
    monkeypatch.setattr(lane, "open_lane", lambda *args, **kwargs: None)
    client = make_flow().client_conn
    handlers = master.master.addons.get("proxyserver").connections
    handlers[client.id] = SimpleNamespace(client=client)
    addon.client_connected(client)
    assert opened[0]()
    assert addon.client_disconnected(client) is None
    gc.collect()
    assert opened[0]() is None
    del handlers[client.id]

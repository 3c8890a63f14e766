"""Who looks on."""

from __future__ import annotations

import asyncio
from typing import Any

from mitmproxy.addons.disable_h2c import DisableH2C
from mitmproxy.test import taddons, tflow

from sglang_cached_addon.addon import SglangCached
from sglang_cached_addon.proxy.onlookers import FLOW_HOOKS, Onlookers


class Watcher:
    """An addon that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def request(self, flow: Any) -> None:
        self.told.append("request")

    def response(self, flow: Any) -> None:
        raise ValueError("one that fails")

    def update(self, flows: Any) -> None:
        self.told.append("update")


class Deaf:
    """An addon that wants to know of no flow."""

    def running(self) -> None:
        pass


def test_look() -> None:
    """Those count who have a hook of flows, but for ourselves, and for what mitmproxy needs."""
    onlookers = Onlookers()

    async def run() -> None:
        own = SglangCached()
        with taddons.context(own, DisableH2C(), Deaf(), loadcore=False) as tctx:
            onlookers.look()
            assert (onlookers.names, onlookers.is_there) == ([], False)
            tctx.master.addons.add(Watcher())
            assert not onlookers.is_there
            onlookers.look()
            assert (onlookers.names, onlookers.is_there) == (["watcher"], True)
            tctx.master.addons.remove(own)

    asyncio.run(run())


def test_told() -> None:
    """All addons are told, and one that fails spoils nothing."""
    watcher, onlookers, flow = Watcher(), Onlookers(), tflow.tflow()

    async def run() -> None:
        with taddons.context(watcher, loadcore=False):
            await onlookers.tell(flow, "request")
            onlookers.tell_soon(flow, *FLOW_HOOKS)
            onlookers.update(flow)
            async with asyncio.timeout(60):
                while len(watcher.told) < 8:
                    await asyncio.sleep(0)

    asyncio.run(run())
    assert watcher.told.count("request") == 2
    assert watcher.told.count("update") == 6

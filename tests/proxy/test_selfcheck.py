"""The inside of mitmproxy and asyncio: each part is tried, and what needs it is off without it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mitmproxy.proxy.layers.http import HttpLayer
from mitmproxy.proxy.layers.http._http1 import Http1Client, Http1Server
from mitmproxy.proxy.mode_servers import AsyncioServerInstance
from mitmproxy.proxy.server import ConnectionHandler, TimeoutWatchdog

from sglang_cached_addon.proxy.selfcheck import InsidePart, faults
from tests.conftest import Proxy, StartProxy, until
from tests.simulator import Simulator
from tests.tables import each

GENERATE = {"text": "one", "sampling_params": {"temperature": 0.9}}
# What another version may do without.
MOVED: list[tuple[InsidePart, type, str]] = [
    (InsidePart.LAYERS, Http1Server, "read_headers"),
    (InsidePart.LAYERS, HttpLayer, "make_stream"),
    (InsidePart.LAYERS, HttpLayer, "get_connection"),
    (InsidePart.ANSWERS, Http1Client, "read_headers"),
    (InsidePart.WATCHDOG, TimeoutWatchdog, "register_activity"),
    (InsidePart.WATCHDOG, ConnectionHandler, "drain_writers"),
    (InsidePart.READER, asyncio.StreamReader, "feed_data"),
    (InsidePart.SERVERS, AsyncioServerInstance, "__init__"),
]


@pytest.fixture
def fresh() -> Iterator[None]:
    """What is tried is tried anew, now and afterwards."""
    faults.cache_clear()
    yield
    faults.cache_clear()


def test_as_expected(fresh: None) -> None:
    """This mitmproxy and this Python have all of it."""
    assert faults() == {}


def test_what_has_moved_is_noticed(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that another version does not have, or has otherwise, is named."""
    for part, kind, name in MOVED:
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, None)
            faults.cache_clear()
            assert part in faults(), (kind, name)


# What a later version might look like.
HIDE = """
import sys
def hidden(name):
    def get(self):
        if sys._getframe(1).f_globals["__name__"].endswith(("proxy.inside", "proxy.selfcheck")):
            raise AttributeError(name)
        return vars(self)["other" + name]
    def put(self, value):
        vars(self)["other" + name] = value
    return property(get, put)
"""
VERSIONS = {
    InsidePart.LAYERS: """
from mitmproxy.proxy.layers.http import HttpLayer
make_stream, event_to_child = HttpLayer.make_stream, HttpLayer.event_to_child
def other(self, child, event):
    self.make_stream = lambda stream_id: make_stream(self, stream_id)
    yield from event_to_child(self, child, event)
HttpLayer.event_to_child = other
""",
    InsidePart.ANSWERS: """
from mitmproxy.proxy.layers import http
class Other(http.Http1Client):
    pass
http.Http1Client = Other
""",
    InsidePart.WATCHDOG: """
from mitmproxy.proxy.server import TimeoutWatchdog
begin, watch = TimeoutWatchdog.__init__, TimeoutWatchdog.watch
def other_begin(self, timeout, callback):
    begin(self, timeout, callback)
    self.other = callback
async def other_watch(self):
    self.callback = self.other
    await watch(self)
TimeoutWatchdog.__init__, TimeoutWatchdog.watch = other_begin, other_watch
""",
    InsidePart.READER: f"""{HIDE}
import asyncio
asyncio.StreamReader._buffer = hidden("_buffer")
""",
    InsidePart.SERVERS: f"""{HIDE}
from mitmproxy.proxy.mode_servers import AsyncioServerInstance
AsyncioServerInstance._servers = hidden("_servers")
""",
}


def outcomes(proxy: Proxy) -> list[str]:
    """What becomes of a call, the same again, and the same as a stream."""
    said = []
    for body in (GENERATE, GENERATE, {**GENERATE, "stream": True}):
        answer = requests.post(f"{proxy.url}/generate", json=body, timeout=30)
        assert answer.status_code == 200
        said.append(answer.headers["X-Cache"])
        until(lambda: proxy.stats()["total_responses"])
    return said


@each("part", VERSIONS)
def test_another_version(
    part: InsidePart, simulator: Simulator, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """Without a part the proxy still caches, and says once what is off."""
    proxy = start_proxy(simulator.url, cache=tmp_path / part.name, first=VERSIONS[part])
    assert outcomes(proxy) == ["MISS", "HIT", "HIT"]
    assert requests.get(f"{proxy.url}/v1/models", timeout=30).status_code == 200
    told = [line for line in proxy.log.splitlines() if f"not as expected: {part.value} (" in line]
    assert len(told) == 1
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log

"""An empty Redis server for each test, with all the time that it wants."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.redis import RedisServer


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path_factory.mktemp("redis"))
    yield started
    started.stop()


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    """The same one for all tests, whatever the last one has done to it."""
    if running.process:
        running.signal(signal.SIGCONT)
    else:
        running.start()
    with running.client() as client:
        client.flushall()
    return running


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is slow, as the machine is busy, is not away."""
    monkeypatch.setattr("sglang_cached_addon.store.redis.server.SECONDS", 10.0)

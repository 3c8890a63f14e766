"""Who gets the last file descriptors."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import closing

import pytest

from sglang_cached_addon.wire import descriptors
from tests.tables import each


@pytest.fixture
def limited() -> Iterator[int]:
    """A low limit; the number of the last descriptor."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    yield 199
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Taken:
    """Descriptors, as many as there are below a number."""

    def __init__(self, below: int) -> None:
        self.fds: list[int] = []
        while (fd := os.dup(0)) < below:
            self.fds.append(fd)
        os.close(fd)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def test_is_left(limited: int) -> None:
    """The last descriptors are left to those who may have them."""
    assert descriptors.is_left(descriptors.for_clients())
    with closing(Taken(150)) as taken:
        assert not descriptors.is_left(150)
        assert descriptors.is_left(151)
        os.close(taken.fds.pop(0))
        assert descriptors.is_left(150)
    with closing(Taken(limited)):
        last = os.dup(0)
        assert not descriptors.is_left(1000)
        os.close(last)


def test_upstream_waits(limited: int) -> None:
    """A connection to upstream waits for a descriptor."""

    async def wait() -> None:
        with closing(Taken(limited - descriptors.SPARE + 1)) as taken:
            waits = asyncio.ensure_future(descriptors.for_upstream())
            await asyncio.sleep(0)
            assert not waits.done()
            os.close(taken.fds.pop())
            await asyncio.wait_for(waits, 60)

    with asyncio.Runner() as runner:  # it has its own before
        runner.run(wait())


@each(
    ("before", "after"),
    [((100, 300), 300), ((100, 1 << 20), descriptors.MOST), ((70_000, 80_000), 70_000)],
)
def test_raise_limit(before: tuple[int, int], after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is raised as far as it may be, and never lowered."""
    known = {"limit": before}
    monkeypatch.setattr(resource, "getrlimit", lambda which: known["limit"])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: known.update(limit=limits))
    assert descriptors.raise_limit() == after
    assert known["limit"] == (after, before[1])

"""Pauses in long work."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from sglang_cached_addon.service.pauses import RELEASE_SECONDS, beside, pausing


def test_others_have_their_turn() -> None:
    """Another thread goes on in a pause, however much the first one has to do."""
    pause, is_over = pausing(), threading.Event()
    other = threading.Thread(target=is_over.set)
    other.start()
    while not is_over.is_set():
        pause()
    other.join()


def test_memory_is_given_back() -> None:
    """What was freed between things that stay is the system's again."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("of Linux alone")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * 4096

    pause = pausing()
    pieces = [bytes([n % 256]) * 65536 for n in range(1600)]
    full = resident()
    del pieces[::2], pieces[: len(pieces) // 2]
    until = time.monotonic() + RELEASE_SECONDS
    while time.monotonic() <= until:
        pass
    pause()
    assert resident() < full - (60 << 20)
    assert pieces


def test_beside() -> None:
    """Work that is done in a thread leaves the loop to others, and what it raises is raised."""

    async def main() -> None:
        turn = threading.Event()
        asyncio.get_running_loop().call_later(0, turn.set)
        assert await beside(lambda pause: (turn.wait(30), pause())) == (True, None)
        with pytest.raises(ZeroDivisionError):
            await beside(lambda pause: 1 // 0)

    asyncio.run(main())

"""How far mitmproxy has come with what it was given."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from sglang_cached_addon.proxy.next_protocol import NextProtocol


def following() -> tuple[NextProtocol, Any, list[bytes]]:
    """One without a door yet, its connection, and what mitmproxy gets."""
    received: list[bytes] = []
    connection: Any = SimpleNamespace(door=None)
    protocol: Any = SimpleNamespace(data_received=received.append)
    return NextProtocol(connection, protocol, 0), connection, received


def test_how_far_it_is() -> None:
    """It is at a boundary when all that was given has been read, and nothing is under way."""
    behind, connection, received = following()
    assert (behind.is_at_boundary(), behind.is_reading) == (True, False)
    behind.give(b"one", b"", b"two")
    assert received == [b"one", b"two"]
    assert (behind.is_at_boundary(), behind.is_reading) == (False, True)
    for seen, is_idle, found in (
        (3, True, (False, True)),
        (6, False, (False, False)),
        (6, True, (True, False)),
    ):
        connection.door = SimpleNamespace(seen=seen, is_idle=is_idle)
        assert (behind.is_at_boundary(), behind.is_reading) == found


def test_many_bytes_are_given_in_turn() -> None:
    """Others have their turn between the pieces of a large request."""
    behind, _, received = following()
    data = bytes(range(256)) * 1024

    async def run() -> list[int]:
        giving = asyncio.ensure_future(behind.give_in_turn(b"head", data))
        counts = []
        while not giving.done():
            await asyncio.sleep(0)
            counts.append(len(received))
        return counts

    assert all(after - before <= 1 for before, after in pairwise(asyncio.run(run())))
    assert b"".join(received) == b"head" + data

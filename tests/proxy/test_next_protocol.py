"""How far mitmproxy has come with what it was given."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from sglang_cached_addon.proxy.next_protocol import NextProtocol


class Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.received: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.received.append(data)


def test_how_far_it_is() -> None:
    """It is at a boundary when all that was given has been read, and nothing is under way."""
    connection: Any = SimpleNamespace(door=None)
    protocol = Protocol()
    following = NextProtocol(connection, protocol, 0)
    assert (following.is_at_boundary(), following.is_reading) == (True, False)
    following.give(b"one", b"", b"two")
    assert protocol.received == [b"one", b"two"]
    assert (following.is_at_boundary(), following.is_reading) == (False, True)
    for seen, is_idle, found in (
        (3, True, (False, True)),
        (6, False, (False, False)),
        (6, True, (True, False)),
    ):
        connection.door = SimpleNamespace(seen=seen, is_idle=is_idle)
        assert (following.is_at_boundary(), following.is_reading) == found


def test_many_bytes_are_given_in_turn() -> None:
    """Others have their turn between the pieces of a large request."""
    connection: Any = SimpleNamespace(door=None)
    protocol = Protocol()
    data = bytes(range(256)) * 1024

    async def run() -> list[int]:
        giving = asyncio.ensure_future(
            NextProtocol(connection, protocol, 0).give_in_turn(b"head", data)
        )
        counts = []
        while not giving.done():
            await asyncio.sleep(0)
            counts.append(len(protocol.received))
        return counts

    counts = asyncio.run(run())
    assert b"".join(protocol.received) == b"head" + data
    assert all(after - before <= 1 for before, after in pairwise(counts))

"""The protocol behind the fast lane, by which mitmproxy reads what the lane does not take.

Knows how many bytes mitmproxy was given, and by the connection's door how many of them it has
read. What the bytes mean is for others to say.
"""

from __future__ import annotations

import asyncio

from sglang_cached_addon.proxy import inside
from sglang_cached_addon.proxy.connections import ClientConnection
from sglang_cached_addon.proxy.selfcheck import InsidePart, has

_TURN = 64 * 1024
"""How many bytes of a large request mitmproxy is given at once."""


class NextProtocol:
    """mitmproxy's end of a client's connection."""

    def __init__(
        self, connection: ClientConnection, protocol: asyncio.Protocol, given: int
    ) -> None:
        """`given`: how many bytes mitmproxy has been given before."""
        self.protocol = protocol
        self._connection = connection
        self._given = given

    @property
    def is_reading(self) -> bool:
        """Whether mitmproxy has not read all that it was given."""
        door = self._connection.door
        return self._given != (door.seen if door else 0)

    def is_at_boundary(self) -> bool:
        """Whether mitmproxy has read all that it was given, and is between two requests."""
        door = self._connection.door
        if door is None:
            return not self._given
        return self._given == door.seen and door.is_idle

    def give(self, *parts: bytes) -> None:
        for part in parts:
            if part:
                self._given += len(part)
                self.protocol.data_received(part)

    async def give_in_turn(self, *parts: bytes) -> None:
        """Gives many bytes, in turn with what else there is to do."""
        for part in parts:
            for at in range(0, len(part), _TURN):
                self.give(part[at : at + _TURN])
                await asyncio.sleep(0)


def behind(connection: ClientConnection) -> NextProtocol | None:
    """What reads a connection that was just made; None where it cannot be known how far it has."""
    stream = inside.end_of(connection.handler).reader
    protocol = connection.transport.get_protocol()
    if not (
        has(InsidePart.READER)
        and isinstance(stream, asyncio.StreamReader)
        and isinstance(protocol, asyncio.Protocol)
    ):
        return None
    return NextProtocol(connection, protocol, inside.unread(stream))

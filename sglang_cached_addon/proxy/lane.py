"""The fast lane: plain calls are answered where their bytes arrive, before mitmproxy sees them.

A `Lane` takes the place of the protocol of a client's transport. At a message boundary
(mitmproxy has seen all that it was given, and is between two requests) a
complete, plain request whose samples are all stored is answered with one write; one that
others answer in time is waited for, with what comes behind it. Everything else goes on, byte
for byte, to the `Passage` before mitmproxy. The lane is out of sight but for its speed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

from sglang_cached_addon.proxy import inside
from sglang_cached_addon.proxy.connections import Connection, HeadTimer, Progress
from sglang_cached_addon.proxy.passage import MAX_HELD, refusal
from sglang_cached_addon.wire.http1 import Head, HeadReader, NoHead

Answer = Callable[[Head, bytes], bytes | None]
"""The bytes that answer a request, or None if not every sample is stored."""

Way = Coroutine[Any, Any, bytes | None]
"""To the bytes that answer a request, or to None if that is for mitmproxy."""

Fill = Callable[[Head, bytes, bytes], Way | None]
"""The way to what is not all stored, or None if the request is for mitmproxy. It is given the
head as it came, too."""

logger = logging.getLogger("sglang_cached_addon")

# Received into and copied from before anything else happens, so all connections share it.
_BUFFER = bytearray(256 * 1024)
_VIEW = memoryview(_BUFFER)

_TURN = 64 * 1024

LARGE = 1 << 20
"""Bytes of an answer that is not sent in one go: to copy it would hold up others."""

"""Bytes of a large request that mitmproxy is given at once."""


class State(Enum):
    """What becomes of the bytes that come."""

    READY = "requests are answered, or given to mitmproxy"
    FILLING = "an answer is waited for"
    FULL = "the client has to read first"
    GIVING = "a large request is on its way to mitmproxy"
    GONE = "nobody is there any more"


class Lane(asyncio.BufferedProtocol):
    """Stands between a client's transport and the protocol that mitmproxy reads from."""

    def __init__(
        self, connection: Connection, reader: HeadReader, answer: Answer, fill: Fill, given: int
    ) -> None:
        """`given`: bytes that mitmproxy has been given."""
        transport = connection.writer.transport
        protocol = transport.get_protocol()
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(protocol, asyncio.Protocol)
        self.head = HeadTimer(self._is_late)
        self._given = given
        self._connection = connection
        self._transport = transport
        self._protocol = protocol
        self._reader = reader
        self._answer = answer
        self._fill = fill
        self._watchdog = connection.handler.timeout_watchdog
        self._state = State.READY
        self._is_full = False
        self._has_room: asyncio.Future[None] | None = None
        """Somebody waits until it is not full any more."""
        """The client does not read as fast as it is answered."""
        self._held = bytearray()
        """What has come and is not dealt with; in `READY` it begins with a request."""
        self._wanted = 0
        """Bytes of that request, as far as its head is known."""
        self._task: asyncio.Task[None] | None = None
        """Waits, in `FILLING` and `GIVING`."""

    @property
    def progress(self) -> Progress | None:
        """As `connections.Stage`."""
        if self._state is not State.READY:
            return Progress.ANSWER
        if self._held:
            return Progress.BODY if self._wanted else Progress.HEAD
        door = self._connection.door
        return Progress.BODY if self._given != (door.seen if door else 0) else None

    # What the transport calls

    def get_buffer(self, sizehint: int) -> memoryview:
        return _VIEW

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_VIEW[:nbytes])
        self._watchdog.register_activity()
        if self._state is not State.READY:
            self._held += data
            if len(self._held) > MAX_HELD:
                self._transport.pause_reading()
        elif not self._held:
            if self._is_at_boundary():
                self._receive(data)
            else:
                self._give(data)
        else:
            searched = 0 if self._wanted else len(self._held)
            self._held += data
            if len(self._held) >= self._wanted:
                self._receive(self._held, searched)

    def eof_received(self) -> bool | None:
        # What is held of a request will not be whole any more.
        self._leave()
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._is_full = True
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._has_room and not self._has_room.done():
            self._has_room.set_result(None)
        self._protocol.resume_writing()
        if self._state is State.FULL:
            self._be_ready()

    # What it does

    def _is_at_boundary(self) -> bool:
        door = self._connection.door
        if door is None:
            return not self._given
        return self._given == door.seen and door.is_idle

    def _receive(self, data: bytes | bytearray, searched: int = 0) -> None:
        """Answers the hits that the data begins with, and gives on or holds the rest. So many bytes
        are known to be without the end of a head."""
        at = 0
        while at < len(data):
            head = self._reader.read(data, at, searched)
            searched = 0
            if head is NoHead.FOREIGN:
                break
            end = 0 if head is NoHead.PARTIAL else at + head.size + head.length
            if head is NoHead.PARTIAL or len(data) < end:
                self._hold(data, at)
                self._wanted = max(end - at, 0)
                if at or self._wanted:
                    self.head.end()
                if not self._wanted:
                    self.head.begin()
                return
            self.head.end()
            body = _part(data, at + head.size, end)
            answer = self._answer(head, body)
            if answer is None:
                raw = _part(data, at, at + head.size)
                way = self._fill(head, raw, body)
                if way is None:
                    break
                self._hold(data, end)
                self._wait_for(State.FILLING, self._filled(way, head, raw, body))
                return
            at = end
            if not self._send(answer, head):
                return
            if self._is_full:
                self._hold(data, at)
                self._state = State.FULL
                return
        self.head.end()
        rest = _part(data, at, len(data))
        self._hold(b"", 0)
        self._give(rest)

    def _hold(self, data: bytes | bytearray, at: int) -> None:
        """Keeps what is behind a place."""
        if data is self._held:
            del self._held[:at]
        else:
            self._held[:] = data[at:]
        self._wanted = 0

    def _send(self, answer: bytes, head: Head) -> bool:
        """Whether there may be another request."""
        self._transport.write(answer)
        if head.closes:
            self._hang_up()
        return not self._transport.is_closing()

    async def _send_most(self, answer: bytes) -> bytes:
        """Sends a large answer at its client's pace, in turn with what else there is to do; what is
        left of it."""
        view = memoryview(answer)
        last = (len(answer) - 1) // LARGE * LARGE
        for at in range(0, last, _TURN):
            while self._is_full and not self._transport.is_closing():
                self._has_room = asyncio.get_running_loop().create_future()
                await self._has_room
            if at % LARGE == 0:
                self._watchdog.register_activity()
                await asyncio.sleep(0)
            self._transport.write(view[at : min(last, at + _TURN)])
        return bytes(view[last:])

    def _hang_up(self) -> None:
        self.head.end()
        self._hold(b"", 0)
        self._state = State.GONE
        self._transport.close()

    def _is_late(self) -> None:
        """A head has taken too long."""
        self._transport.write(refusal(408, "the request head took too long"))
        self._hang_up()

    def _wait_for(self, state: State, waits: Coroutine[Any, Any, None]) -> None:
        self._state = state
        # Never eagerly: one that is done at once would be done before it is known here.
        self._task = asyncio.Task(waits)

    async def _filled(self, way: Way, head: Head, raw: bytes, body: bytes) -> None:
        """Answers a request, or gives it on, and then what has come behind it."""
        answer = None
        try:
            answer = await way
        except Exception:  # as with a hook that fails: the request goes on without us
            logger.exception("sglang-cached: error in the fast lane")
        if self._state is not State.FILLING:
            return
        self._watchdog.register_activity()
        if answer and len(answer) > LARGE:
            answer = await self._send_most(answer)
        if answer is None:
            behind = bytes(self._held)
            self._hold(b"", 0)
            self._state, self._task = State.READY, None
            self._transport.resume_reading()
            self._give(raw, body, behind)
        elif self._send(answer, head):
            self._be_ready()

    def _be_ready(self) -> None:
        """Goes on with what has come meanwhile, if the client has room for answers."""
        self._task = None
        if self._is_full:
            self._state = State.FULL
            return
        self._state = State.READY
        self._transport.resume_reading()
        if not self._held:
            return
        if self._is_at_boundary():
            self._receive(self._held)
        else:
            behind = bytes(self._held)
            self._hold(b"", 0)
            self._give(behind)

    def _leave(self) -> None:
        """The client is gone, and wants no answer."""
        if self._task:
            # When it has begun, so that what it waits for has an end.
            asyncio.get_running_loop().call_soon(self._task.cancel)
            self._task = None
        self.head.end()
        self._hold(b"", 0)
        self._state = State.GONE

    def _give(self, *parts: bytes) -> None:
        """Gives bytes to mitmproxy; where they are many, in turn with what else there is to do."""
        size = sum(map(len, parts))
        if size > MAX_HELD:
            self._wait_for(State.GIVING, self._give_in_turn(parts))
            return
        self._given += size
        for part in parts:
            if part:
                self._protocol.data_received(part)

    async def _give_in_turn(self, parts: tuple[bytes, ...]) -> None:
        for part in parts:
            for at in range(0, len(part), _TURN):
                piece = part[at : at + _TURN]
                self._given += len(piece)
                self._protocol.data_received(piece)
                await asyncio.sleep(0)
        if self._state is State.GIVING:
            self._be_ready()


def _part(data: bytes | bytearray, begin: int, end: int) -> bytes:
    """A copy, and not a copy of a copy."""
    return data[begin:end] if type(data) is bytes else bytes(memoryview(data)[begin:end])


def open_lane(
    connection: Connection, reader: HeadReader, answer: Answer, fill: Fill
) -> Lane | None:
    """Puts a lane before a client that has just connected; None where that cannot be."""
    stream = inside.end_of(connection.handler).reader
    transport = connection.writer.transport
    protocol = transport.get_protocol()
    if not (
        inside.has(inside.Part.READER)
        and isinstance(stream, asyncio.StreamReader)
        and isinstance(transport, asyncio.Transport)
        and isinstance(protocol, asyncio.Protocol)
    ):
        return None
    lane = Lane(connection, reader, answer, fill, inside.unread(stream))
    connection.lane = lane
    transport.set_protocol(lane)
    return lane

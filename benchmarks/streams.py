"""A client for streams, in a process of its own: `python -m benchmarks.streams PORT ...`.

Opens all connections, sends all requests at once, and counts events until every stream has
ended, `--times` over: new requests each time, or with `--same` each connection its own one.
Prints one JSON object: `rate` (events a second over all streams, median of the times),
`first_ms` (from a request to its first event, median over all) and `times`. With `--json`,
the calls want no stream, and an answer counts as one event.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time

import orjson

from benchmarks.calls import Call, chat_stream

_EVENT = b"data: {"
_ANSWER = b'"choices":'
_LAST_CHUNK = b"0\r\n\r\n"


class Stream(asyncio.Protocol):
    """One connection, used for one stream after the other."""

    def __init__(self, mark: bytes, end: bytes) -> None:
        self._mark = mark
        self._last = end
        self.closed = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.events = 0
        self.first = 0.0
        """When the first event came."""
        self.head = b""
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def start(self, call: Call, number: int) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self.events, self.first, self.head, self._rest = 0, 0.0, b"", b""
        body = call.body(number)
        head = (
            f"POST {call.path} HTTP/1.1\r\nHost: stub\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        if not self.head:
            self.head = data.split(b"\r\n\r\n", 1)[0]
        data = self._rest + data
        self.events += data.count(self._mark)
        if self.events and not self.first:
            self.first = time.perf_counter()
        # It may be the beginning of a mark that goes on in the next read.
        self._rest = data[1 - len(self._mark) :]
        if data.endswith(self._last):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        self._transport.close()


async def measure(o: argparse.Namespace) -> dict[str, float]:
    """Raises ValueError when a stream is not as long as it should be, or is no hit, or is one,
    against what is asked for."""
    loop = asyncio.get_running_loop()
    port, streams, events = o.port, o.streams, o.events
    call = chat_stream(
        events,
        o.interval_ms,
        is_stream=not o.json,
        is_stored=not o.unstored,
        has_usage=not o.no_usage,
    )
    marks = (_ANSWER, b"}") if o.json else (_EVENT, _LAST_CHUNK)
    events = 1 if o.json else events
    pairs = [
        await loop.create_connection(lambda: Stream(*marks), "127.0.0.1", port)
        for _ in range(streams)
    ]
    clients = [client for _, client in pairs]
    rates, firsts = [], []
    for turn in range(o.times):
        began = {}
        for i, client in enumerate(clients):
            began[client] = time.perf_counter()
            client.start(call, o.start + i + (0 if o.same else turn * streams))
        await asyncio.gather(*(client.ended for client in clients))
        took = time.perf_counter() - began[clients[0]]
        for client in clients:
            if client.closed or client.events != events:
                raise ValueError(f"{client.events} of {events} events, {client.head!r}")
            if (b"x-cache: hit" in client.head.lower()) != o.hits:
                raise ValueError("a stream came from the cache" if not o.hits else "no hit")
            firsts.append((client.first - began[client]) * 1000)
        rates.append(streams * events / took)
    for client in clients:
        client.close()
    return {
        "rate": statistics.median(rates),
        "first_ms": statistics.median(firsts),
        "times": o.times,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--interval-ms", type=float, default=5.0, help="between events")
    parser.add_argument("--unstored", action="store_true", help="calls that no cache looks at")
    parser.add_argument("--no-usage", action="store_true", help="streams that cannot be stored")
    parser.add_argument("--json", action="store_true", help="calls that want no stream")
    parser.add_argument("--same", action="store_true", help="the same requests every time")
    parser.add_argument("--hits", action="store_true", help="all must be hits; else none may be")
    parser.add_argument("--start", type=int, required=True, help="the first request's number")
    o = parser.parse_args()
    try:
        found = asyncio.run(measure(o))
    except (OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return 1
    print(orjson.dumps(found).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())

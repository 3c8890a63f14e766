"""Upstreams of the tests: what they have in common; one that takes requests strictly as h11 reads
them, and notes each one; and one that says the same bytes to everybody."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import BaseRequestHandler, BaseServer, StreamRequestHandler, ThreadingTCPServer
from typing import Any, TypeVar

import h11

Server = TypeVar("Server", bound=BaseServer)


class Upstream(ThreadingTCPServer):
    """A thread for each connection."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, handler: type[BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answering(BaseHTTPRequestHandler):
    """What an upstream that answers in JSON needs for each connection."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def reply(self, status: int, said: Any, kind: str = "application/json") -> None:
        """Answers with a document, or with bytes."""
        data = said if isinstance(said, bytes) else json.dumps(said, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle(self) -> None:
        with suppress(OSError):  # a client that left is none of our business
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class Heard:
    """A request."""

    method: str
    target: str
    fields: dict[str, str]
    pieces: list[bytes] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Hearing(Upstream):
    """Answers everything with the same bytes, or with what `answer` makes of a request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.heard: list[Heard] = []
        self.errors: list[str] = []
        """What was no HTTP."""
        self.answer: Callable[[Heard], bytes] = lambda heard: OK

    def asked(self, target: str) -> list[Heard]:
        return [heard for heard in self.heard if heard.target == target]


class _Handler(StreamRequestHandler):
    server: Hearing

    def handle(self) -> None:
        with suppress(OSError):
            self._serve()

    def _serve(self) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        heard: Heard | None = None
        while True:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError as e:
                self.server.errors.append(str(e))
                return
            if event is h11.NEED_DATA:
                data = self.request.recv(1 << 16)
                if not data:  # a request that was refused on its way is cut off here
                    return
                http.receive_data(data)
            elif isinstance(event, h11.Request):
                fields = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                heard = Heard(event.method.decode(), event.target.decode("latin-1"), fields)
            elif isinstance(event, h11.Data):
                assert heard
                heard.pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert heard
                heard.trailers = list(event.headers)
                self.server.heard.append(heard)
                self.wfile.write(self.server.answer(heard))
                http.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                http.send(h11.EndOfMessage())
                if http.our_state is not h11.DONE:
                    return
                http.start_next_cycle()
            else:
                return


class Saying(Upstream):
    """Answers every connection with the same bytes, whatever they are, and hangs up."""

    data = b""
    then = b""
    """What is said behind it, again and again."""

    def __init__(self) -> None:
        super().__init__(_Speaker)


class _Speaker(BaseRequestHandler):
    server: Saying

    def handle(self) -> None:
        with suppress(OSError):
            self.request.recv(65536)
            self.request.sendall(self.server.data)
            for _ in range(10_000 if self.server.then else 0):
                self.request.sendall(self.server.then * 1000)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Runs a server in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def hearing() -> AbstractContextManager[Hearing]:
    return serving(Hearing())


def saying(data: bytes = b"") -> AbstractContextManager[Saying]:
    server = Saying()
    server.data = data
    return serving(server)

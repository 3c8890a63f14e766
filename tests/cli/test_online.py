"""What answers at a URL, and is no proxy, or one below a path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import pytest

from sglang_cached_addon.cli import online
from sglang_cached_addon.cli.online import Online
from sglang_cached_addon.cli.reach import CacheError
from tests.hearing import saying
from tests.tables import each


@contextmanager
def answering(status: int, body: bytes, asked: list[str]) -> Iterator[str]:
    """A server that says the same to everybody; notes what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Authorization')}")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@each(
    ("status", "body", "said"),
    [
        (200, b"<html>", "is no route of sglang-cached: status 200, and no JSON"),
        (404, b"[]", "is no route of sglang-cached: status 404, and no JSON"),
        (404, b'{"detail":"Not Found"}', "status 404"),
        (403, b'{"error":{"message":"not for you"}}', "not for you"),
    ],
)
def test_what_is_no_answer(status: int, body: bytes, said: str) -> None:
    """An error is told in the words of who answers, or with the status."""
    with answering(status, body, []) as url, closing(Online(url)) as cache:
        with pytest.raises(CacheError) as caught:
            cache.ask("GET", "/cache/stats")
        assert str(caught.value).endswith(said)


def test_below_a_path() -> None:
    """A proxy behind another one may be below a path; what is asked is escaped, and the token is
    with it."""
    asked: list[str] = []
    with answering(200, b"{}", asked) as url, closing(Online(f"{url}/llm/", "secret")) as cache:
        assert cache.ask("GET", "/cache/entries", {"text": "a&b", "run": None}) == {}
    assert asked == ["/llm/cache/entries?text=a%26b Bearer secret"]


def test_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks at something is told in time that there is no answer; who changes something waits
    for it, as it goes on all the same."""
    monkeypatch.setattr(online, "SECONDS", 0.05)
    is_done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_done.wait(60)
            with suppress(OSError):  # who asked has left
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with closing(Online(url)) as cache, pytest.raises(CacheError, match="no answer"):
                cache.ask("GET", "/cache/stats")
            later = threading.Timer(0.3, is_done.set)
            later.start()
            with closing(Online(url)) as cache:
                assert cache.ask("POST", "/cache/clear") == {}
            later.join()
        finally:
            is_done.set()
            server.shutdown()
            thread.join()


def test_no_http() -> None:
    """What is no HTTP is told as such."""
    with saying(b"SSH-2.0-OpenSSH_9.6\r\n") as server, closing(Online(server.url)) as cache:
        with pytest.raises(CacheError) as caught:
            cache.ask("GET", "/cache/stats")
        assert server.url in str(caught.value)

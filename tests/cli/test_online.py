"""What answers at a URL, and is no proxy, or one below a path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

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


def test_no_http() -> None:
    """What is no HTTP is told as such."""
    with saying(b"SSH-2.0-OpenSSH_9.6\r\n") as server, closing(Online(server.url)) as cache:
        with pytest.raises(CacheError) as caught:
            cache.ask("GET", "/cache/stats")
        assert server.url in str(caught.value)

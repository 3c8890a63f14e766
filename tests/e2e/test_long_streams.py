"""Streams that are long, or have no end: nobody waits for ever, and memory has a bound."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, suppress
from typing import Any

import pytest

from tests.conftest import StartProxy, until
from tests.e2e.calls import COMPLETIONS, DONE, Stream, post
from tests.hearing import Answering, Upstream, serving
from tests.replayer import INFO

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}

HEAD = {"id": "i", "object": "text_completion", "created": 1, "model": "m"}
WHOLE = {
    **HEAD,
    "choices": [{"index": 0, "text": "whole", "finish_reason": "stop"}],
    "usage": USAGE,
}


class Lengthy(Upstream):
    """Sends so many events of a size, and the terminator, and ends; or does not."""

    def __init__(
        self, count: int, size: int, *, ends: bool = True, terminates: bool = True
    ) -> None:
        super().__init__(_Handler)
        self.count, self.text, self.ends = count, "x" * size, ends
        self.terminates = terminates
        self.sent = self.calls = self.left = 0


class _Handler(Answering):
    server: Lengthy

    def do_GET(self) -> None:
        recorded = INFO.get(self.path, {"response": {"status": 404, "body": ""}})["response"]
        self.reply(recorded["status"], recorded["body"].encode())

    def do_POST(self) -> None:
        try:
            is_stream = json.loads(self.body()).get("stream", False)
        except ValueError:
            is_stream = False
        if not is_stream:
            self.reply(200, WHOLE)
            return
        self.server.calls += 1
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for k in range(self.server.count):
            end = "stop" if k == self.server.count - 1 else None
            self._say([{"index": 0, "text": self.server.text, "finish_reason": end}])
        self._say([], usage=USAGE)
        if self.server.terminates:
            self._send(DONE)
        if self.server.ends:
            self.wfile.write(b"0\r\n\r\n")
            return
        self.connection.settimeout(30)
        with suppress(OSError):
            if not self.connection.recv(1):
                self.server.left += 1
        self.close_connection = True

    def _say(self, choices: list[Any], **more: Any) -> None:
        self._send(b"data: %b\n\n" % json.dumps({**HEAD, "choices": choices, **more}).encode())

    def _send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.server.sent += len(data)


def lengthy(count: int, size: int, **ways: bool) -> AbstractContextManager[Lengthy]:
    return serving(Lengthy(count, size, **ways))


def asking(**more: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "p", "stream": True, **more}


def is_still(server: Lengthy, seconds: float = 0.5) -> bool:
    """Whether upstream has sent something, and no more for some time."""
    before = server.sent
    time.sleep(seconds)
    return 0 < before == server.sent


def test_one_that_does_not_read(start_proxy: StartProxy) -> None:
    """For a client that does not read the proxy does not read all of a stream; and who comes later
    does not wait for it."""
    with lengthy(2_000, 16_000) as upstream:  # 32 MB
        proxy = start_proxy(upstream.url)
        post(proxy, COMPLETIONS, {"model": "m", "prompt": "q"})
        before = proxy.memory()
        with closing(Stream(proxy, COMPLETIONS, asking())) as stuck:
            stuck.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.begin()
            until(lambda: is_still(upstream), 20)
            assert upstream.sent < 24 << 20
            assert proxy.memory() - before < 40 << 20
            with ThreadPoolExecutor() as pool:
                late = pool.submit(post, proxy, COMPLETIONS, asking())
                until(lambda: proxy.stats()["followers"] == 1)
                stuck.close()
                answer = late.result()
        assert upstream.calls == 1
        assert answer.headers["X-Cache"] == "COLLAPSED"
        said = [json.loads(event[6:]) for event in answer.content.split(b"\n\n")[:-2]]
        text = "".join(choice["text"] for event in said for choice in event["choices"])
        assert text == upstream.text * upstream.count


def test_no_end_behind_the_terminator(start_proxy: StartProxy) -> None:
    """Neither a client nor who asks the same waits for a body to end behind its terminator."""
    with lengthy(3, 4, ends=False) as upstream:
        proxy = start_proxy(upstream.url)
        began = time.monotonic()
        with ThreadPoolExecutor() as pool:
            forms = [asking(), asking(), asking(stream=False)]
            answers = [pool.submit(post, proxy, COMPLETIONS, body) for body in forms]
            found = [answer.result() for answer in answers]
        assert time.monotonic() - began < 15
        assert {answer.status_code for answer in found} == {200}
        assert all(answer.content.endswith(DONE) for answer in found[:2])
        assert post(proxy, COMPLETIONS, asking()).headers["X-Cache"] == "HIT"
        until(lambda: upstream.left == upstream.calls)


@pytest.mark.parametrize("count", [1, 2])
def test_closed_behind_the_terminator(count: int, start_proxy: StartProxy) -> None:
    """A client that hangs up when it has all has not left before the end."""
    with lengthy(3, 4, ends=False) as upstream:
        proxy = start_proxy(upstream.url)
        clients = [Stream(proxy, COMPLETIONS, asking()) for _ in range(count)]
        for client in clients:
            for chunk in client.begin().chunks():
                if chunk == DONE:
                    break
            client.close()
        until(lambda: proxy.stats()["total_responses"] == 1)
        until(lambda: not proxy.stats()["fetches_in_flight"])
        until(lambda: proxy.log.count("[Cache ") == count)
        stats = proxy.stats()
        assert (stats["not_stored"], stats["misses"]) == ({}, 1)
        assert stats["hits"] + stats["collapsed"] == count - 1
        assert "(cut)" not in proxy.log


def test_ended_without_the_terminator(start_proxy: StartProxy) -> None:
    """A stream that ends in good order, but without its terminator, is passed on and not stored."""
    with lengthy(3, 4, terminates=False) as upstream:
        proxy = start_proxy(upstream.url)
        for calls in (1, 2):
            answer = post(proxy, COMPLETIONS, asking())
            assert answer.headers["X-Cache"] == "MISS"
            assert b'"finish_reason": "stop"' in answer.content
            assert not answer.content.endswith(DONE)
            assert upstream.calls == calls
        assert proxy.stats()["not_stored"] == {"cut": 2}

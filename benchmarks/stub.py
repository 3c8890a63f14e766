"""The upstream that every target stands in front of: `python -m benchmarks.stub --port N`.

HTTP/1.1 with keep-alive on one event loop, and as little work as possible: answers are
fixed bytes in SGLang's shape (0.5.23), made once per `n`. A call with `"stream": true` gets
as many events as it has tokens to generate, and the usage if it asks for that, one HTTP chunk
each, the first at once and the others `interval_ms` of the call apart (5), on a schedule that
does not drift. Answers what the benchmark sends, not what HTTP allows.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import orjson

_WEIGHTS = {
    "weight_version": "default",
    "weight_versions": [{"version": "default", "start": 0, "end": 8}],
}
TOKENS = [1448, 1442, 148, 44, 824, 207, 746, 1781]
TEXT = " salty because rivers bring it minerals."
ID = "7d94c5afe8174c089b4cb0f6f3115ffe"
INFO = {
    "/v1/models": {"object": "list", "data": [{"id": "stub", "object": "model", "created": 1}]},
    "/model_info": {"model_path": "stub", "tokenizer_path": "stub", "is_generation": True},
    "/get_model_info": {"model_path": "stub", "tokenizer_path": "stub", "is_generation": True},
}


def native(text: str, tokens: list[int], finish: Any) -> dict[str, Any]:
    """A sample of `/generate`."""
    meta = {"id": ID, "finish_reason": finish, "prompt_tokens": 10, **_WEIGHTS,
            "num_retractions": 0, "reasoning_tokens": 0, "completion_tokens": len(tokens),
            "cached_tokens": 9, "cached_tokens_details": {"device": 9, "host": 0},
            "dp_rank": None, "e2e_latency": 0.018}  # fmt: skip
    return {"text": text, "output_ids": tokens, "meta_info": meta}


def generated(n: int) -> Any:
    """A whole answer of `/generate`."""
    sample = native(TEXT, TOKENS, {"type": "length", "length": len(TOKENS)})
    return sample if n == 1 else [sample] * n


def chat(n: int) -> Any:
    """A whole answer of `/v1/chat/completions`."""
    message = {"role": "assistant", "content": TEXT, "reasoning_content": None}
    choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": "length",
                "matched_stop": None} for i in range(n)]  # fmt: skip
    usage = {"prompt_tokens": 20, "total_tokens": 20 + 8 * n, "completion_tokens": 8 * n,
             "prompt_tokens_details": None, "reasoning_tokens": 0}  # fmt: skip
    return {"id": ID, "object": "chat.completion", "created": 1795408031, "model": "stub",
            "choices": choices, "usage": usage, "metadata": _WEIGHTS}  # fmt: skip


def event(path: str, i: int, events: int) -> bytes:
    """Event `i` of a stream: cumulative on `/generate`, a delta in a chat."""
    is_last = i == events - 1
    if path == "/generate":
        finish = {"type": "length", "length": events} if is_last else None
        data: Any = native(" sea" * (i + 1), TOKENS[:1] * (i + 1), finish)
    else:
        first = {"reasoning_content": None, "role": "assistant", "content": ""}
        delta = {"reasoning_content": None} if is_last else first
        if 0 < i < events - 1:
            delta = {"reasoning_content": None, "content": " sea"}
        choice = {"index": 0, "delta": delta, "logprobs": None,
                  "finish_reason": "length" if is_last else None,
                  "matched_stop": None}  # fmt: skip
        data = {"id": ID, "object": "chat.completion.chunk", "created": 1795408031,
                "model": "stub", "choices": [choice]}  # fmt: skip
    return b"data: " + orjson.dumps(data) + b"\n\n"


def response(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nserver: stub\r\ncontent-type: application/json\r\n"
    return head % status + b"content-length: %d\r\n\r\n" % len(body) + body


@cache
def answer(path: str, n: int) -> bytes:
    """The response to a call that is not streamed."""
    return response(orjson.dumps(generated(n) if path == "/generate" else chat(n)))


def usage(events: int) -> bytes:
    """The usage of a chat stream."""
    counts = {"prompt_tokens": 20, "total_tokens": 18 + events, "completion_tokens": events - 2,
              "prompt_tokens_details": None, "reasoning_tokens": 0,
              "completion_tokens_details": None}  # fmt: skip
    data = {"id": ID, "object": "chat.completion.chunk", "created": 1795408031, "model": "stub",
            "choices": [], "usage": counts}  # fmt: skip
    return b"data: " + orjson.dumps(data) + b"\n\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@cache
def chunk(path: str, i: int, events: int, wants_usage: bool) -> bytes:
    """An event as an HTTP chunk, or the end of the stream."""
    if i < events:
        return chunked(event(path, i, events))
    counts = chunked(usage(events)) if wants_usage else b""
    return counts + chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: stub\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            _, path, _ = head.split(b" ", 2)
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            self.received(bytes(head), path.decode("latin-1"), body)

    def received(self, head: bytes, path: str, body: bytes) -> None:
        """Answers a request; `head` is in lower case."""
        if head.startswith(b"post ") and path in ("/generate", "/v1/chat/completions"):
            call = orjson.loads(body)
            params = call.get("sampling_params", call)
            if call.get("stream"):
                events = params.get("max_new_tokens") or params.get("max_tokens") or 16
                self._transport.write(STREAM_HEAD)
                interval = call.get("interval_ms", 5) / 1000
                options = call.get("stream_options") or {}
                wants_usage = bool(options.get("include_usage")) and call.get("has_usage", True)
                self._stream(path, 0, events, wants_usage, interval, self._loop.time())
            else:
                self._transport.write(answer(path, params.get("n", 1)))
        elif path in INFO:
            self._transport.write(response(orjson.dumps(INFO[path])))
        else:
            self._transport.write(response(b'{"detail":"Not Found"}', b"404 Not Found"))

    def _stream(
        self, path: str, i: int, events: int, usage: bool, interval: float, started: float
    ) -> None:
        self._transport.write(chunk(path, i, events, usage))
        if i < events:
            due = started + (i + 1) * interval
            call = (path, i + 1, events, usage, interval, started)
            self._timer = self._loop.call_at(due, self._stream, *call)


async def serve(port: int, connection: Callable[[], asyncio.Protocol] = Connection) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connection, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port))

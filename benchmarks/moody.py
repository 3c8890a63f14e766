"""An upstream that is slow, silent, fails, or says much: `python -m benchmarks.moody --port N`.

The stub with a mood that `POST /mood` changes: `{"info_seconds": S}` is how long it takes to
say which model it serves. A call of `/generate` may carry `"answer_bytes": B`, the length of
each sample's text, or `"fails_after": S`, and gets a sample for each prompt of a list. Calls for
lists that generate nothing are answered as `listing` has it. With `--key` it asks for that key on
every route but `/health`.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from functools import cache, partial

import orjson

from benchmarks import listing, stub

READ = 4 << 20
"""Bytes of a call that is looked into; a larger one gets one sample."""

INFO = {**stub.INFO, "/server_info": {"version": "0.5.23", "dtype": "auto"}}


@cache
def answer(samples: int, length: int, is_list: bool) -> bytes:
    """A response with so many samples, each with a text of so many bytes."""
    finish = {"type": "length", "length": len(stub.TOKENS)}
    sample = stub.native("s" * length, stub.TOKENS, finish)
    return stub.response(orjson.dumps([sample] * samples if is_list else sample))


class Mood:
    """Of the whole process."""

    def __init__(self, key: str) -> None:
        self.key = f"authorization: bearer {key}".lower().encode() if key else b""
        self.info_seconds = 0.0


class Connection(stub.Connection):
    """One client."""

    def __init__(self, mood: Mood) -> None:
        super().__init__()
        self._mood = mood

    def received(self, head: bytes, path: str, body: bytes) -> None:
        if path == "/mood":
            self._mood.info_seconds = orjson.loads(body)["info_seconds"]
            self._transport.write(stub.response(b"{}"))
        elif path == "/health":
            self._transport.write(stub.response(b"{}"))
        elif self._mood.key not in head:
            self._transport.write(stub.response(b'{"error":"Unauthorized"}', b"401 Unauthorized"))
        elif path in INFO:
            self._later(self._mood.info_seconds, stub.response(orjson.dumps(INFO[path])))
        elif path == "/generate":
            call = orjson.loads(body) if len(body) < READ else {}
            if seconds := call.get("fails_after"):
                failure = stub.response(b'{"error":"busy"}', b"500 Internal Server Error")
                self._later(seconds, failure)
                return
            prompts = call.get("text", "")
            n = call.get("sampling_params", {}).get("n", 1)
            is_list = isinstance(prompts, list)
            count = n * len(prompts) if is_list else n
            length = call.get("answer_bytes", len(stub.TEXT))
            self._transport.write(answer(count, length, is_list or n > 1))
        elif path in listing.ANSWERS:
            answered = listing.ANSWERS[path](orjson.loads(body))
            self._transport.write(stub.response(orjson.dumps(answered)))
        else:
            super().received(head, path, body)

    def _later(self, seconds: float, response: bytes) -> None:
        self._loop.call_later(seconds, self._transport.write, response)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(stub.serve(options.port, partial(Connection, Mood(options.key))))

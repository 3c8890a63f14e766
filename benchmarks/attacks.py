"""What other clients do meanwhile: `python -m benchmarks.attacks NAME --port N ...`.

One attack, over and over for some seconds, in a process of its own that yields to the others.
Says `begun` in a line, and at the end how often it was done.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks import client
from benchmarks.client import NO_HEADERS

KEY = "benchmark"
"""Which an upstream that asks for a key wants; the measured client shows it to every one."""

NO_CACHE = {"Cache-Control": "no-cache"}

WAIT = 30.0
"""Seconds within which an attack that is under way has to end."""

_numbers = itertools.count(time.time_ns())


@dataclass(frozen=True, slots=True)
class Target:
    """A proxy, its upstream and its folder, and when to stop."""

    port: int
    upstream: int
    folder: Path
    seconds: float
    end: float

    def turns(self) -> Iterator[int]:
        """Numbers that were never used, until the time is over."""
        while time.monotonic() < self.end:
            yield next(_numbers)

    def rest(self) -> None:
        time.sleep(max(0.0, self.end - time.monotonic()))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), WAIT)

    def send(self, data: bytes) -> int:
        """Bytes on a connection of their own, until it answers or closes: one time more."""
        with self.connect() as connection, suppress(ConnectionError):
            connection.sendall(data)
            connection.recv(65536)
        return 1

    def post(self, call: object, headers: Mapping[str, str] = NO_HEADERS) -> int:
        """The status of an answer, which is read to its end."""
        body = call if isinstance(call, bytes) else orjson.dumps(call)
        return client.ask(self.port, "POST", "/generate", body, headers).status

    def mood(self, info_seconds: float) -> None:
        client.ask(self.upstream, "POST", "/mood", orjson.dumps({"info_seconds": info_seconds}))


def asked(text: object, n: int = 1, **more: object) -> dict[str, object]:
    """A call of `/generate`."""
    return {"text": text, "sampling_params": {"max_new_tokens": 8, "n": n}, **more}


def at_once(count: int, one: Callable[[], int]) -> int:
    """`one` in so many threads; raises what it raises."""
    with ThreadPoolExecutor(count) as threads:
        return sum(done.result() for done in [threads.submit(one) for _ in range(count)])


def must(status: int, wanted: int = 200) -> int:
    """One time more."""
    if status != wanted:
        raise SystemExit(f"status {status}, not {wanted}")
    return 1


def head(fields: bytes) -> Callable[[Target], int]:
    data = b"POST /generate HTTP/1.1\r\nHost: stub\r\n" + fields + b"\r\n"
    return lambda target: sum(target.send(data) for _ in target.turns())


def held(count: int, data: bytes) -> Callable[[Target], int]:
    """The beginning of a request on so many connections, which are left at that."""

    def hold(target: Target) -> int:
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(target.connect()).sendall(data)
            target.rest()
        return count

    return hold


def calls(call: Callable[[int], object], status: int = 200) -> Callable[[Target], int]:
    """Calls that are made of numbers, one after the other, and the status that all of them get."""
    return lambda target: sum(must(target.post(call(i)), status) for i in target.turns())


def prompts(count: int) -> Callable[[int], object]:
    return lambda i: asked([f"{i} {j}" for j in range(count)])


def answers(samples: int) -> Callable[[int], object]:
    """Calls for so many samples of 20 KB."""
    return lambda i: asked(f"{i}", samples, answer_bytes=20_000)


def embeddings(size: int) -> Callable[[int], object]:
    """`input_embeds` in so many bytes, rows of 1,024 numbers as models give them."""
    row = b"[" + b",".join([b"0.0156250009313226"] * 1024) + b"]"
    start = b'{"sampling_params":{"max_new_tokens":8},"input_embeds":['
    body = start + b",".join([row] * (size // len(row))) + b"]"
    return lambda i: body + b',"custom":%d}' % i  # a member that nobody knows: another call


def model_late(seconds: float, headers: Mapping[str, str] = NO_HEADERS) -> Callable[[Target], int]:
    """New calls while upstream takes so long to say which model it serves; with `no-cache`, the
    same one over and over."""

    def ask(target: Target) -> int:
        target.mood(seconds)
        done = 0
        for i in target.turns():
            done += must(target.post(asked("again" if headers else f"{i}"), headers))
            time.sleep(0.01)
        target.mood(0)
        return done

    return ask


def keyless(target: Target) -> int:
    ask = calls(lambda i: asked(f"{i}"), 401)
    return at_once(16, lambda: ask(target))


def failures(target: Target) -> int:
    def ask(number: int) -> int:
        call = asked(f"{number}", fails_after=0.2)
        return at_once(12, lambda: must(target.post(call), 500))

    return sum(ask(i) for i in target.turns())


def compaction(target: Target) -> int:
    """It begins by itself, and may go on for longer than the time to look at it."""
    aside = target.folder / "cache.jsonl.new"
    deadline = time.monotonic() + WAIT
    while not aside.exists():
        if time.monotonic() > deadline:
            raise SystemExit("the journal is not compacted")
        time.sleep(0.01)
    end = time.monotonic() + target.seconds
    while aside.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return 1


def unread(target: Target) -> int:
    """Hits of 1 MB, each some 120 bytes of request, on 8 connections that nobody reads."""
    call = asked("unread", answer_bytes=1_000_000)
    must(target.post(call))
    body = orjson.dumps(call)
    request = b"POST /generate HTTP/1.1\r\nHost: stub\r\nContent-Type: application/json\r\n"
    data = (request + b"Content-Length: %d\r\n\r\n" % len(body) + body) * 100
    with ExitStack() as stack:
        connections = [stack.enter_context(target.connect()) for _ in range(8)]
        for connection in connections:
            connection.setblocking(False)
        for _ in target.turns():
            for connection in connections:
                with suppress(BlockingIOError):
                    connection.send(data)
            time.sleep(0.05)
    return len(connections)


UPDATE = (
    b"POST /update_weights_from_disk HTTP/1.1\r\nHost: stub\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"model_path":'
)


@dataclass(frozen=True, slots=True)
class Attack:
    """What goes on, and what it needs."""

    name: str
    run: Callable[[Target], int]
    key: str = ""
    """Which upstream asks for."""
    entries: int = 0
    """Of a journal that was written ahead, three times over."""


ATTACKS = (
    Attack("heads with 60 KB of blanks", head(b"X-Blanks: a" + b" " * 60_000 + b"b\r\n")),
    Attack("heads with 200,000 fields", head(b"".join(b"X-%d: a\r\n" % i for i in range(200_000)))),
    Attack("300 half heads", held(300, b"POST /generate HTTP/1.1\r\nHost: stub\r\nX-Half: ")),
    Attack("10,000 prompts", calls(prompts(10_000))),
    Attack("100,000 prompts", calls(prompts(100_000))),
    Attack("9 MB of embeddings", calls(embeddings(9_000_000))),
    Attack("64 MB of embeddings", calls(embeddings(64_000_000))),
    Attack("answers of 11 MB", calls(answers(540))),
    Attack("answers of 85 MB", calls(answers(4_150))),
    Attack("model told after 1 s", model_late(1)),
    Attack("model not told", model_late(3600)),
    Attack("no-cache, model after 1 s", model_late(1, NO_CACHE)),
    Attack("16 keyless clients", keyless, key=KEY),
    Attack("12 equal calls that fail", failures),
    Attack("compaction", compaction, entries=100_000),
    Attack("1 MB hits that nobody reads", unread),
    Attack("updates held open", held(8, UPDATE)),
)
"""The table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[attack.name for attack in ATTACKS])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    o = parser.parse_args()
    os.nice(10)
    (run,) = (attack.run for attack in ATTACKS if attack.name == o.name)
    print("begun", flush=True)
    end = time.monotonic() + o.seconds
    print(run(Target(o.port, o.upstream, o.folder, o.seconds, end)))


if __name__ == "__main__":
    main()

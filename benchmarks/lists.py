"""Long lists of inputs, and who else is served meanwhile: `python -m benchmarks.lists`.

For each API and length: how long the list takes without a cache, all of it new, all known, and
half known; what a core has to do for one input; and the longest time for which a hit of another
client had to wait, that is asked for every millisecond. Only ratios and bounds of one run count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks import client, servers
from benchmarks.meanwhile import Client, Times
from benchmarks.servers import Server

LENGTHS = (1_000, 10_000, 100_000)

HELD_MS = 50.0
"""For so long a list may hold up others."""

LIMIT = 600.0
"""Seconds that one list may take."""

APIS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "embeddings": ("/v1/embeddings", "input", {"encoding_format": "float"}),
    "embeddings-base64": ("/v1/embeddings", "input", {"encoding_format": "base64"}),
    "tokenize": ("/v1/tokenize", "prompt", {}),
    "classify": ("/v1/classify", "input", {}),
    "score": ("/v1/score", "items", {"query": "is ", "label_token_ids": [1, 2]}),
    "rerank": ("/v1/rerank", "documents", {"query": "is"}),
}
"""The route, the field that has the inputs, and what else is in a call."""


def call(api: str, first: int, count: int) -> bytes:
    """The body of a call for so many short inputs, each of them of its own."""
    _, field, more = APIS[api]
    return orjson.dumps({**more, field: [f"{api} {i}" for i in range(first, first + count)]})


@dataclass(frozen=True, slots=True)
class Row:
    """What one list has taken."""

    api: str
    count: int
    what: str
    seconds: float
    direct: float
    """Seconds without a cache."""
    cpu: float
    """Microseconds of a core for each input."""
    held: float
    """Milliseconds that a hit has taken at most meanwhile."""
    quiet: float
    """The same, when nothing else went on."""

    def __str__(self) -> str:
        verdict = "" if self.held <= HELD_MS else " missed"
        return (
            f"{self.api:18} {self.count:8,} {self.what:6} {self.seconds:8.2f} s "
            f"{self.seconds / self.direct:6.1f} x direct {self.cpu:7.1f} µs/input "
            f"{self.held:7.1f} ms held (quiet: {self.quiet:.1f}){verdict}"
        )


def send(port: int, path: str, body: Path) -> float:
    """The seconds that a call takes, which is sent by another process."""
    command = [sys.executable, "-m", "benchmarks.lists", "--send", str(body), path, str(port)]
    done = subprocess.run(
        command, cwd=servers.ROOT, capture_output=True, text=True, timeout=LIMIT, check=True
    )
    return float(done.stdout)


def measure(server: Server, api: str, body: Path) -> tuple[float, float, Times]:
    """Seconds of a list, seconds of a core, and the hits meanwhile."""
    path = APIS[api][0]
    hits = Client(server.port)
    hits.fill()
    before = server.cpu()
    command = [sys.executable, "-m", "benchmarks.lists",
               "--send", str(body), path, str(server.port)]  # fmt: skip
    process = subprocess.Popen(command, cwd=servers.ROOT, stdout=subprocess.PIPE, text=True)
    try:
        times = hits.hits(lambda: process.poll() is not None)
        said, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
        hits.close()
    if process.returncode:
        raise ValueError("the list was not answered")
    return float(said), server.cpu() - before, times


def rows(api: str, count: int, work: Path, upstream: Server) -> list[Row]:
    """New, known and half known lists of one length, in a cache of their own."""
    body = work / "body"
    found = []
    with servers.ours(upstream, work / f"{api}-{count}") as server:
        body.write_bytes(call(api, 0, count))
        direct = send(upstream.port, APIS[api][0], body)
        hits = Client(server.port)
        hits.fill()
        end = time.monotonic() + 1
        quiet = hits.hits(lambda: time.monotonic() > end)
        hits.close()
        for what, first in (("new", 0), ("known", 0), ("half", count // 2)):
            body.write_bytes(call(api, first, count))
            seconds, cpu, times = measure(server, api, body)
            row = Row(api, count, what, seconds, direct, cpu * 1e6 / count,
                      times.highest / 1000, quiet.highest / 1000)  # fmt: skip
            found.append(row)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lists", description=__doc__)
    parser.add_argument("--api", choices=APIS, action="append", help="repeatable (default: all)")
    parser.add_argument("--length", type=int, action="append", help=f"(default: {LENGTHS})")
    parser.add_argument("--send", nargs=3, metavar=("FILE", "PATH", "PORT"), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.send:
        file, path, port = o.send
        data = Path(file).read_bytes()
        began = time.monotonic()
        answer = client.ask(int(port), "POST", path, data)
        print(time.monotonic() - began)
        return 0 if answer.status == 200 else 1
    is_missed = False
    with tempfile.TemporaryDirectory(prefix="sglang-cached-lists-") as name:
        for api in o.api or APIS:
            for count in o.length or LENGTHS:
                with servers.moody("") as upstream:
                    for row in rows(api, count, Path(name), upstream):
                        print(row, flush=True)
                        is_missed |= row.held > HELD_MS
    print("missed" if is_missed else "met", f"nobody is held up for more than {HELD_MS:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())

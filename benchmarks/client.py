"""Single requests, and the check that a target does what a row says of it.

Not for timing. `X-Cache` is HIT or MISS with all targets that cache; the stub has none.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from benchmarks import stub
from benchmarks.calls import Call

TIMEOUT = 60.0
NO_HEADERS: Mapping[str, str] = {}
STORE_SECONDS = 1.0
"""How long a cache may take from an answer to the first hit of it."""


class NotAsClaimed(Exception):
    """A target would be measured at something else than the row says."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    cache: str | None
    """`X-Cache`."""
    body: bytes


def get(port: int, path: str) -> Answer:
    return ask(port, "GET", path)


def post(port: int, call: Call, number: int) -> Answer:
    return ask(port, "POST", call.path, call.body(number))


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Answer:
    """Sends one request on a connection of its own; raises OSError for what is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return Answer(response.status, response.getheader("X-Cache"), response.read())
    except http.client.HTTPException as e:
        raise OSError(f"{method} {path}: {e!r}") from e
    finally:
        connection.close()


def counts(port: int) -> dict[str, int]:
    """`hits` and `misses` so far."""
    stats = orjson.loads(get(port, "/cache/stats").body)
    return {name: int(stats[name]) for name in ("hits", "misses")}


def check(port: int, call: Call, number: int, wanted: str | None) -> None:
    """Sends one request; raises `NotAsClaimed` unless its answer is right, and of that kind."""
    _judge(post(port, call, number), call, wanted)


def fill(port: int, call: Call, number: int) -> None:
    """Sends a request until it is a hit; raises `NotAsClaimed` if it never is."""
    deadline = time.monotonic() + STORE_SECONDS
    while (answer := post(port, call, number)).cache != "HIT" and time.monotonic() < deadline:
        time.sleep(0.001)
    _judge(answer, call, "HIT")


def _judge(answer: Answer, call: Call, wanted: str | None) -> None:
    if answer.status != 200 or answer.cache != wanted:
        raise NotAsClaimed(
            f"{wanted or 'no X-Cache'} expected, got {answer.cache}, status {answer.status}"
        )
    n = orjson.loads(call.template)["sampling_params"].get("n", 1)
    if orjson.loads(answer.body) != stub.generated(n):
        raise NotAsClaimed(f"{answer.cache or 'direct'}: not the stub's answer: {answer.body!r}")

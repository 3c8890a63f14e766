"""Killed without warning, again and again: what was kept is there, and nothing is wrong.

What is promised begins when `/cache/stats` counts a sample: from 100 ms later on it outlives the
process. `CRASHES=N` kills more often than the suite does, and `SAFE_SECONDS=0.1` holds the proxy to
its word. The suite shares the processors with much else, and goes by what `/cache/stats` says: what
is not told to wait for the disk is there.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from tests.conftest import StartProxy, until
from tests.simulator import Simulator

pytestmark = pytest.mark.one_way

CRASHES = int(os.environ.get("CRASHES", "2"))
THREADS = 4
LOOKED_AT = 100
"""How many answers are asked for again after a crash, chosen by chance."""

SAFE_SECONDS = float(os.environ.get("SAFE_SECONDS", "inf"))
"""What was counted that long ago has reached the file."""

LOAD = 20
"""So many samples are kept before it is killed."""

Answers = dict[int, bytes]
"""By number of the call."""
Count = tuple[float, int, int]
"""When `/cache/stats` answered, how many samples it counted, and how many of those waited."""


def ask(session: requests.Session, url: str, number: int) -> requests.Response:
    body = {"text": f"call {number}", "sampling_params": {"temperature": 0.9, "max_new_tokens": 16}}
    return session.post(f"{url}/generate", json=body, timeout=30)


def written(count: Count) -> int:
    """How many samples were in the file by then."""
    return count[1] - count[2]


def load(url: str, numbers: itertools.count[int], seen: Answers) -> None:
    """Asks new things until the proxy is gone."""
    with requests.Session() as session, suppress(requests.RequestException):
        while True:
            number = next(numbers)
            answer = ask(session, url, number)
            # An answer that is cut short raises before it gets here.
            seen[number] = answer.content
            assert answer.status_code == 200, answer.text


def count(url: str, counts: list[Count]) -> None:
    """Looks what is kept until the proxy is gone."""
    with requests.Session() as session, suppress(requests.RequestException):
        while True:
            found = session.get(f"{url}/cache/stats", timeout=30).json()
            counts.append((time.monotonic(), found["total_responses"], found["pending_writes"]))


@pytest.mark.parametrize("compacts", [False, True], ids=["plain", "compacting"])
def test_killed_under_load(
    compacts: bool, simulator: Simulator, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """A crash costs no answer that was kept, and none is served in place of another."""
    seed = random.Random(20)
    numbers: itertools.count[int] = itertools.count()
    for crash in range(CRASHES):
        proxy = start_proxy(simulator.url, "--quiet")
        seen: Answers = {}
        counts: list[Count] = []
        threads = [
            threading.Thread(target=load, args=(proxy.url, numbers, seen)) for _ in range(THREADS)
        ]
        threads.append(threading.Thread(target=count, args=(proxy.url, counts)))
        for thread in threads:
            thread.start()
        if compacts:  # of another model there is nothing: all is only written anew
            with suppress(requests.RequestException):
                requests.post(f"{proxy.url}/cache/clear?model=other", timeout=0.05)
        until(lambda counts=counts: counts and written(counts[-1]) >= counts[0][1] + LOAD)
        threads[0].join(seed.random() * 0.5)
        killed = time.monotonic()
        proxy.stop(signal.SIGKILL)
        for thread in threads:
            thread.join(60)
        kept = max(
            found if when < killed - SAFE_SECONDS else written((when, found, waiting))
            for when, found, waiting in counts
        )
        proxy = start_proxy(simulator.url, "--quiet")
        assert proxy.stats()["total_responses"] >= kept, f"crash {crash}"
        with requests.Session() as session:
            for number, data in seed.sample(sorted(seen.items()), min(len(seen), LOOKED_AT)):
                answer = ask(session, proxy.url, number)
                if answer.headers["X-Cache"] == "HIT":
                    assert answer.content == data, f"crash {crash}: call {number}"
        assert "line skipped" not in proxy.log
        proxy.stop()

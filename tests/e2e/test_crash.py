"""Killed without warning, again and again: what was answered is there, and nothing is wrong.

`CRASHES=N` kills more often than the suite does, and `SAFE_SECONDS=0.1` holds the proxy to its
word; in the suite it has longer, as it shares the processors with other tests.
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

import requests

from sglang_cached_addon.simulator import Simulator
from tests.conftest import StartProxy

CRASHES = int(os.environ.get("CRASHES", "5"))
THREADS = 4
SAFE_SECONDS = float(os.environ.get("SAFE_SECONDS", "0.3"))
"""An answer that is older has reached the file."""

Acknowledged = dict[int, tuple[float, bytes]]
"""By number of the call: when its answer came, and which."""


def ask(session: requests.Session, url: str, number: int) -> requests.Response:
    body = {
        "text": f"call {number}",
        "sampling_params": {"temperature": 0.9, "max_new_tokens": 16},
    }
    return session.post(f"{url}/generate", json=body, timeout=10)


def load(url: str, numbers: itertools.count[int], seen: Acknowledged) -> None:
    """Asks new things until the proxy is gone."""
    with requests.Session() as session, suppress(requests.RequestException):
        while True:
            number = next(numbers)
            answer = ask(session, url, number)
            # An answer that is cut short raises before it gets here.
            seen[number] = time.monotonic(), answer.content
            assert answer.status_code == 200, answer.text


def test_killed_under_load(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A crash would cost answers that clients already have, or serve others in their place."""
    seed = random.Random(20)
    numbers: itertools.count[int] = itertools.count()
    for crash in range(CRASHES):
        proxy = start_proxy(simulator.url, "--quiet")
        seen: Acknowledged = {}
        threads = [
            threading.Thread(target=load, args=(proxy.url, numbers, seen)) for _ in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        threads[0].join(0.3 + seed.random() * 0.5)
        killed = time.monotonic()
        proxy.stop(signal.SIGKILL)
        for thread in threads:
            thread.join(20)
        proxy = start_proxy(simulator.url, "--quiet")
        ages = {number: killed - when for number, (when, _) in seen.items()}
        assert max(ages.values()) > SAFE_SECONDS, f"crash {crash}: there was no load"
        lost = []
        with requests.Session() as session:
            for number, (_, data) in seen.items():
                answer = ask(session, proxy.url, number)
                if answer.headers["X-Cache"] == "HIT":
                    assert answer.content == data, f"crash {crash}: call {number}"
                elif ages[number] > SAFE_SECONDS:
                    lost.append(ages[number])
        assert not lost, f"crash {crash}: seconds before it, of {len(ages)}: {lost}"
        assert "line skipped" not in proxy.log
        proxy.stop()

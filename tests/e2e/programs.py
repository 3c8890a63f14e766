"""Clients that run as programs of their own: what npm has for Node, and litellm in an environment
of its own. Both are there after `make clients`; a test that wants one is skipped where it is not.
Each is started once, as it takes long: a line that it reads is what it is to ask, and a line that
it writes is what it got.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Proxy

Json = dict[str, Any]

Calls = list[tuple[str, Json]]
"""Names of a client's functions, and what they are given."""

Ask = Callable[[str, Calls], list[Any]]
"""What a client gets from a URL: of each call the header X-Cache, and the answer or its events."""

IS_REAL = "SGLANG_URL" in os.environ

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LITELLM = ROOT / ".venv-litellm/bin/python"


@contextmanager
def program(*command: str) -> Iterator[Callable[[Any], Any]]:
    """One that runs, and is asked; what it says of a fault is on stderr."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    pipes: Json = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdin and process.stdout

    def ask(asked: Any) -> Any:
        print(json.dumps(asked), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def node() -> Iterator[Ask]:
    """OpenAI's and Anthropic's clients for Node."""
    path = shutil.which("node")
    if path is None or not (ROOT / "node_modules/openai").is_dir():
        pytest.skip("Node or its packages are not there; `make clients` fetches these")
    with program(path, str(HERE / "node_client.mjs")) as client:
        yield lambda url, calls: list(client({"url": url, "calls": calls}))


@pytest.fixture(scope="session")
def litellm() -> Iterator[Callable[[Calls], list[Any]]]:
    """What litellm gets: of each call the answer or its chunks."""
    if not LITELLM.is_file():
        pytest.skip("litellm is not there; `make clients` fetches it")
    with program(str(LITELLM), str(HERE / "litellm_client.py")) as client:
        yield client


def has_samples(url: str) -> bool:
    """Whether a server generates; a real one either does or embeds."""
    return not IS_REAL or _model(url)["is_generation"]


def has_vectors(url: str) -> bool:
    return not IS_REAL or not _model(url)["is_generation"]


def has_thoughts(url: str) -> bool:
    """Whether a server tells what its model thinks from what it says."""
    return not IS_REAL or bool(_model(url)["reasoning_parser"])


def _model(url: str) -> Json:
    found: Json = requests.get(f"{url}/model_info", timeout=30).json()
    return found


def model(url: str) -> str:
    """The name of a server's model: `/v1/responses` wants the right one."""
    found: str = requests.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"]
    return found


@contextmanager
def all_hits(front: Proxy, calls: int, passed: int = 0) -> Iterator[None]:
    """Sees to it that so many calls are asked meanwhile, and that the server is asked for none of
    them; `passed` more are on other routes."""
    before = _counts(front)
    yield
    before["hits"] += calls
    before["bypasses"] = Counter(before["bypasses"]) + Counter(route=passed)
    after = _counts(front)
    assert after == before, (after, before)


def _counts(front: Proxy) -> Json:
    stats = front.stats()
    return {name: stats[name] for name in _COUNTS}


_COUNTS = ("hits", "misses", "partial_hits", "collapsed", "denied", "bypasses")


def twice(ask: Ask, front: Proxy, calls: Calls) -> list[Any]:
    """Asks for what is new, and again: what is got then is equal, and of the cache. Returns it."""
    said = ask(front.url, calls)
    with all_hits(front, len(calls)):
        again = ask(front.url, calls)
    assert again == [["HIT", answer] for _, answer in said]
    assert [cache for cache, _ in said] == ["MISS"] * len(calls)
    return again


def named_events(answer: requests.Response) -> Iterator[Json]:
    """The events of a stream whose events have names, which are their types."""
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    name = ""
    for line in answer.iter_lines(decode_unicode=False):
        kind, _, said = line.decode().partition(": ")
        if kind == "event":
            name = said
        elif kind == "data" and said != "[DONE]":
            event: Json = json.loads(said)
            assert event["type"] == name
            yield event

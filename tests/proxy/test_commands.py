"""The commands of the cache, as people type them in mitmweb."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.conftest import until
from tests.mitmweb import Web, web_proxy
from tests.simulator import Profile, Simulator, running

BODY = {"text": "The sea is", "sampling_params": {"max_new_tokens": 3, "n": 2}}
LATER = "the text is in the event log as soon as it is there"


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with running(Profile()) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def web(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_proxy(simulator.url, tmp_path_factory.mktemp("web")) as found:
        yield found


def stats(web: Web) -> dict[str, str]:
    """What `cache.stats` shows, line by line."""
    lines = web.page.command("cache.stats").splitlines()
    return dict(re.split(r"  +", line, maxsplit=1) for line in lines)


def told(web: Web, words: str, command: str, *arguments: str) -> str:
    """What a command has written into the event log, where these words are in it."""
    before = len(web.page.events())
    assert web.page.command(command, *arguments) == LATER
    found: str = until(lambda: words in (text := web.page.events()[before:]) and text)
    return found


def test_stats(web: Web) -> None:
    """A person reads the counts, each in a line."""
    before = int(stats(web)["hits"])
    for _ in range(2):
        web.ask("/generate", BODY)
    until(lambda: stats(web)["unconfirmed"] == "0")
    assert int(stats(web)["hits"]) == before + 1
    assert stats(web)["num_keys"] == "1"


def test_clear(web: Web) -> None:
    """A person clears what is stored, of one model or all, and is told how much that was; a word
    that is not understood clears nothing."""
    web.ask("/generate", BODY)
    until(lambda: stats(web)["num_keys"] == "1")
    told(web, "sglang-cached: ", "cache.clear", "everything")
    told(web, "0 entries (0 samples) were removed", "cache.clear", "other")
    told(web, "1 entries (2 samples) were removed", "cache.clear")
    assert stats(web)["num_keys"] == "0"
    _, answer = web.ask("/generate", BODY)
    assert answer.startswith("cache: MISS")


def test_arguments(web: Web) -> None:
    """mitmproxy says what a command wants."""
    assert "argument mismatch" in web.page.refused("cache.clear", "a", "b")

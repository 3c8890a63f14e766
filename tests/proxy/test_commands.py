"""The commands of the cache, as people type them in mitmweb."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests

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
def running_web(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_proxy(simulator.url, tmp_path_factory.mktemp("web")) as found:
        yield found


@pytest.fixture
def web(running_web: Web) -> Web:
    """With nothing stored."""
    told(running_web, "were removed", "cache.clear")
    return running_web


def told(web: Web, words: str, command: str, *arguments: str) -> str:
    """What a command has written into the event log, where these words are in it."""
    before = len(web.page.events())
    assert web.page.command(command, *arguments) == LATER
    found: str = until(lambda: words in (text := web.page.events()[before:]) and text)
    return found


def test_stats(web: Web) -> None:
    """A person reads the counts, each in a line of the log, and the most important at once."""
    for _ in range(2):
        web.ask("/generate", BODY)
    counts = web.proxy.stats()
    before = len(web.page.events())
    said = web.page.command("cache.stats")
    assert said.startswith(f"1 entries, 2 samples; {counts['hits']} hits, ")
    told = until(lambda: "num_keys" in (text := web.page.events()[before:]) and text)
    lines = dict(re.findall(r"^(\w+)  +(.*)$", told, re.M))
    assert {name: lines[name] for name in ("num_keys", "hits", "misses")} == {
        "num_keys": "1", "hits": str(counts["hits"]), "misses": str(counts["misses"]),
    }  # fmt: skip


def test_lane(web: Web) -> None:
    """Where mitmweb looks on, the proxy says that its fast lane is off for that."""
    assert web.proxy.info()["lane_off"].startswith("other addons look on (")


def test_clear(web: Web) -> None:
    """A person clears what is stored, of one model or all, and is told how much that was; a word
    that is not understood clears nothing."""
    web.ask("/generate", BODY)
    web.proxy.stats()
    told(web, "sglang-cached: ", "cache.clear", "everything")
    told(web, "0 entries (0 samples) were removed", "cache.clear", "other")
    told(web, "1 entries (2 samples) were removed", "cache.clear")
    assert web.proxy.stats()["num_keys"] == 0
    _, answer = web.ask("/generate", BODY)
    assert answer.startswith("cache: MISS")


def test_show_and_delete(web: Web) -> None:
    """A person reads an entry, by the beginning of its key, and removes it; what is wrong with a
    key is said."""
    web.ask("/generate", BODY)
    other, _ = web.ask("/generate", {**BODY, "text": "An\x1b[31mother"})
    web.proxy.stats()
    request, _ = web.ask("/generate", BODY)
    (key,) = re.findall(r"key ([0-9a-f]{32})", request)
    found = told(web, "sample 2 of 2", "cache.show", key)
    assert f"sglang-cached: {key}" in found
    assert "── prompt ─" in found and "\nThe sea is\n" in found
    assert "sampling_params.max_new_tokens  3" in found
    assert "── sample 1 of 2 · length · 3 tokens ─" in found
    (colored,) = re.findall(r"key ([0-9a-f]{32})", other)
    assert "An\\x1b[31mother" in told(web, "sample 2 of 2", "cache.show", colored)
    # All keys of a model begin alike.
    found = told(web, "more than one entry", "cache.show", key[:8])
    assert found.count(f"\n{key[:8]}") == 2
    told(web, "was removed (2 samples)", "cache.delete", key)
    assert web.proxy.stats()["num_keys"] == 1
    told(web, "no entry has a key that begins with", "cache.show", key)
    told(web, "sglang-cached: ", "cache.delete", "x/../../clear")
    assert web.proxy.stats()["num_keys"] == 1


def test_explain(web: Web) -> None:
    """A person is told what would become of a flow's call, and what is nearest to it. mitmproxy's
    filters name flows: in mitmweb, `@focus` is not the one that is selected."""
    far = {"text": "What is far?", "sampling_params": {"max_new_tokens": 3}}
    for body in (far, {**far, "text": "What is near?"}):
        web.ask("/generate", body)
    web.proxy.stats()
    named = "~bq near & ~hs X-Cache"
    found = told(web, "would be a hit", "cache.explain", named)
    assert '/generate {"text": "What is near?"' in found
    assert "1 of 1 samples are stored" in found and "\nkey " in found
    told(web, "were removed", "cache.clear")
    web.ask("/generate", far)
    web.proxy.stats()
    assert "What is far?" in told(web, "would be a miss", "cache.explain", named)


def test_explain_others(web: Web) -> None:
    """What is no call of a cached API is said to be passed on."""
    requests.get(f"{web.proxy.url}/cache/stats", timeout=30)
    flow = next(f for f in web.page.flows() if f["request"]["path"] == "/cache/stats")
    told(web, "would be a bypass (route)", "cache.explain", f"@{flow['id']}")
    assert "one flow" in web.page.refused("cache.explain", "@none")


def test_arguments(web: Web) -> None:
    """mitmproxy says what a command wants."""
    assert "argument mismatch" in web.page.refused("cache.clear", "a", "b")

"""What is told of a call is what becomes of it, and telling it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.core.policy import MAX_SAMPLES, Mode, Reason
from sglang_cached_addon.service.explaining import Explaining, Explanation
from sglang_cached_addon.service.nearby import Nearby
from sglang_cached_addon.service.runs import Runs
from tests.service.stage import GENERATE, Stage, staged
from tests.tables import each


def explaining(stage: Stage, mode: Mode = Mode.READWRITE, runs: Any = None) -> Explaining:
    exchange, store = stage.exchange, stage.store
    nearby = Nearby(store, exchange.lookup, None)
    runs = runs or stage.service.runs
    return Explaining(exchange, stage.upstream, store, nearby, runs, stage.heads, mode=mode)


async def explain(
    stage: Stage, body: Any, path: str = GENERATE, mode: Mode = Mode.READWRITE, **headers: str
) -> Explanation:
    """An explanation, which has changed nothing."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    before = state(stage)
    fields = tuple(
        (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
    )
    found = await explaining(stage, mode).explain(path, raw, fields)
    assert state(stage) == before
    assert stage.is_quiet
    return found


def state(stage: Stage) -> Any:
    runs = {name: run.as_json() for name, run in stage.service.runs.log.runs.items()}
    return stage.counters.as_json(), list(stage.store.index), stage.store.generation, runs


def asking(text: Any, n: int = 1, **more: Any) -> dict[str, Any]:
    return {"text": text, "sampling_params": {"n": n, **more}}


@staged()
async def test_queries(stage: Stage) -> None:
    """A query that a dialect knows is looked up as it stands; no other is."""
    await stage.stores("a")
    asked = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
    for path, outcome, reason in (
        ("/v1/messages?beta=true", Kind.MISS, None),
        ("/v1/messages?x=1", Kind.BYPASS, Reason.QUERY),
        ("/v1/messages", Kind.MISS, None),
        ("/x?beta=true", Kind.BYPASS, Reason.ROUTE),
        ("/api/chat?beta=true", Kind.BYPASS, Reason.OLLAMA),
    ):
        found = await explain(stage, asked, path)
        assert (found.outcome, found.reason) == (outcome, reason), path


@staged()
async def test_versions(stage: Stage) -> None:
    """What names the version of an API is part of the key, as it is of that of the call itself."""
    await stage.stores("a")
    assert (await explain(stage, asking("a"))).outcome is Kind.HIT
    found = await explain(stage, asking("a"), anthropic_beta="x")
    assert found.outcome is Kind.MISS


@staged()
async def test_long_lists(stage: Stage) -> None:
    """A list of more inputs than a call may want samples is explained as it is answered."""
    await stage.stores("a")
    tokens = [[k] for k in range(MAX_SAMPLES + 1)]
    found = await explain(stage, {"tokens": tokens}, "/v1/detokenize")
    assert brief(found) == ("miss", 0, len(tokens))
    found = await explain(stage, {"tokens": [[0]] * 200_001}, "/v1/detokenize")
    assert found.reason is Reason.TOO_LARGE


def brief(found: Explanation) -> tuple[str, int, int]:
    return found.outcome, found.has, found.wants


@staged()
async def test_outcomes(stage: Stage) -> None:
    """It is told how many samples are there, as the call itself would find."""
    nothing = await explain(stage, asking("a"))
    assert (nothing.outcome, nothing.reason) == (Kind.BYPASS, Reason.NO_MODEL)
    await stage.stores("a", 2)
    await stage.stores("b")
    cases = [
        (asking("a"), ("hit", 1, 1)), (asking("a", 2), ("hit", 2, 2)),
        (asking("a", 3), ("partial", 2, 3)), (asking("c"), ("miss", 0, 1)),
        (asking(["a", "b"]), ("hit", 2, 2)), (asking(["a", "a", "a"]), ("partial", 2, 3)),
        (asking(["c", "b"]), ("partial", 1, 2)),
    ]  # fmt: skip
    for body, expected in cases:
        found = await explain(stage, body)
        assert brief(found) == expected, body
        assert found.text.startswith(f"{expected[1]} of {expected[2]} samples are stored.")
        assert (found.api, found.reason, found.is_admitted) == ("sglang-generate", None, True)
        if found.outcome is Kind.HIT:
            got = await stage.generate(body["text"], body["sampling_params"]["n"])
            assert got.kind == "hit"
    for body in (asking("c"), asking("a", 3)):
        task = stage.ask(GENERATE, body)
        stage.generated(await stage.asked())
        assert (await task).kind == ("miss" if body == asking("c") else "partial")


@staged()
async def test_nearest(stage: Stage) -> None:
    """For what is not stored, the nearest stored calls are told, and where they differ."""
    await stage.stores("one two three")
    found = await explain(stage, asking("one two four"))
    (near,) = found.nearest.calls
    assert found.keys != (near.key,)
    assert [one.as_json() for one in near.differences] == [
        {"at": "text", "asked": "one two four", "stored": "one two three"}
    ]
    assert 'differs in text (asked "one two four", stored "one two three").' in found.text
    assert near.is_same_model
    said = found.as_json()
    assert (said["outcome"], said["key"]) == ("miss", found.keys[0].hex())
    assert (said["nearest"], said["looked_through"]) == ([near.as_json()], 1.0)
    # Of a list, it is the first prompt of which nothing is there.
    found = await explain(stage, asking(["one two three", "one two five"]))
    assert found.nearest.calls[0].differences[0].asked == "one two five"
    assert not (await explain(stage, asking("one two three"))).nearest.calls
    stage.store.clear()
    found = await explain(stage, asking("one two four"))
    assert found.text.endswith("Nothing is stored for this API.")


BYPASSES: dict[str, tuple[str, Any, dict[str, str], Reason]] = {
    "another route": ("/x", {}, {}, Reason.ROUTE),
    "a query": (f"{GENERATE}?x=1", asking("a"), {}, Reason.QUERY),
    "no query": (f"{GENERATE}?", asking("a"), {}, Reason.QUERY),
    "no JSON": (GENERATE, b"{", {}, Reason.INVALID_JSON),
    "a key twice": (GENERATE, b'{"text":"a","text":"b"}', {}, Reason.DUPLICATE_KEY),
    "a browser": (GENERATE, asking("a"), {"origin": "x"}, Reason.CROSS_ORIGIN),
    "no store": (GENERATE, asking("a"), {"cache_control": "no-store"}, Reason.NO_STORE),
    "another type": (GENERATE, asking("a"), {"content_type": "text/plain"}, Reason.CONTENT_TYPE),
    "state": (GENERATE, {**asking("a"), "session_params": {"id": 1}}, {}, Reason.STATE),
    "large": (GENERATE, b" " * (11 << 20), {}, Reason.TOO_LARGE),
}


@each("case", BYPASSES)
@staged()
async def test_bypasses(stage: Stage, case: str) -> None:
    """What is not looked up is told with the reason."""
    await stage.stores("a")
    path, body, headers, reason = BYPASSES[case]
    found = await explain(stage, body, path, **headers)
    assert (found.outcome, found.reason, found.is_admitted) == (Kind.BYPASS, reason, None)
    assert found.text == f"It is not looked up: {reason.meaning}."
    assert found.api == (None if reason is Reason.ROUTE else "sglang-generate")
    assert (await explain(stage, asking("a"), mode=Mode.OFF)).reason is Reason.OFF


@staged()
async def test_terms(stage: Stage) -> None:
    """The terms of the request and of the proxy are told with what they leave out."""
    await stage.stores("a")
    for kwargs, outcome, reason in (
        ({"cache_control": "no-cache"}, Kind.MISS, None),
        ({"cache_control": "max-age=1000"}, Kind.HIT, None),
        ({"mode": Mode.REFRESH}, Kind.MISS, None),
        ({"mode": Mode.OFFLINE}, Kind.HIT, None),
    ):
        found = await explain(stage, asking("a"), **kwargs)  # type: ignore[arg-type]
        assert (found.outcome, found.reason) == (outcome, reason)
        assert ("do not count" in found.text) == (outcome is Kind.MISS)
        assert not found.nearest.calls
    for mode, reason in ((Mode.OFFLINE, Reason.OFFLINE), (Mode.READONLY, Reason.READONLY)):
        found = await explain(stage, asking("b"), mode=mode)
        assert (found.outcome, found.reason) == (Kind.MISS, reason)


@staged()
async def test_runs(stage: Stage) -> None:
    """Of a call of a run, what the run has taken does not count, however the run is named."""
    await stage.stores("a", 2)
    sampled = asking("a")
    await stage.ask(GENERATE, sampled, x_cache_run="r")
    for path, headers, expected in (
        (GENERATE, {"x_cache_run": "r"}, ("hit", 1, 1)),
        (f"/run/r{GENERATE}", {}, ("hit", 1, 1)),
    ):
        assert brief(await explain(stage, sampled, path, **headers)) == expected
    await stage.ask(GENERATE, sampled, x_cache_run="r")
    found = await explain(stage, sampled, f"/run/r{GENERATE}")
    assert (*brief(found), found.run) == ("miss", 0, 1, "r")
    assert "It is a call of run r:" in found.text
    assert brief(await explain(stage, sampled, f"/run/other{GENERATE}")) == ("hit", 1, 1)
    with pytest.raises(ValueError, match="the name of a run"):
        await explain(stage, sampled, f"/run/b d{GENERATE}")


class NotTold(Runs):
    """Runs of a server that does not answer."""

    async def free(self, name: str, key: bytes, samples: Sequence[Sample]) -> Sequence[Sample]:
        raise OSError("redis has the runs, and does not tell of them")


@staged()
async def test_runs_that_nobody_knows(stage: Stage) -> None:
    """Where it is not known what a run has taken, nothing that is stored is for it."""
    await stage.stores("a", 2)
    body = json.dumps(asking("a")).encode()
    found = await explaining(stage, runs=NotTold()).explain(f"/run/r{GENERATE}", body)
    assert brief(found) == ("miss", 0, 1)
    assert "nothing stored is given to it, as redis has the runs, and does not tell" in found.text


@staged(keys={"key"})
async def test_callers(stage: Stage) -> None:
    """It is told whether upstream has accepted such a caller; the headers say who it is."""
    await stage.stores("a", key="key")
    for headers, is_admitted in (({"authorization": "key"}, True), ({}, False)):
        found = await explain(stage, asking("a"), **headers)
        assert (found.outcome, found.is_admitted) == (Kind.HIT, is_admitted)


@staged(keys={"a", "b"}, isolates=True)
async def test_caches_of_their_own(stage: Stage) -> None:
    """Where each credential has a cache of its own, the headers say which one is looked at."""
    await stage.stores("x", key="a")
    for key, outcome in ((b"a", Kind.HIT), (b"b", Kind.MISS)):
        body = json.dumps(asking("x")).encode()
        fields = ((b"Authorization", key),)
        found = await explaining(stage).explain(GENERATE, body, fields)
        assert found.outcome is outcome
    assert found.text.endswith("is the same, but of another model or credential.")

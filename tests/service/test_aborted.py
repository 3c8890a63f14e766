"""The answers to calls that were aborted."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service import aborted
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.wire import sse
from tests.dialects import test_generate_stream as natives
from tests.dialects.streams import parsed, worded
from tests.service.exchanging import CHAT, CHATTING, COMPLETIONS, GENERATE, Setup, body, finishes
from tests.tables import each


def _answer(setup: Setup, known: Known) -> bytes:
    return aborted.answer(known, setup.exchange.lookup.plan(known), setup.exchange.mint(), 100.5)


ABORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": (GENERATE, body()),
    "generate, n": (GENERATE, body(n=2)),
    "generate, list": (GENERATE, body(["a", "b"], 2)),
    "generate, rid": (GENERATE, body(rid="mine")),
    "completions": (COMPLETIONS, {"prompt": "a", "model": "m"}),
    "completions, list": (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}),
    "chat": (CHAT, {**CHATTING, "n": 2}),
    "chat, rid": (CHAT, {**CHATTING, "rid": "mine"}),
}


@each(("path", "asked"), ABORTED.values(), ids=ABORTED)
def test_aborted(path: str, asked: dict[str, Any]) -> None:
    """A call that is aborted while it waits is answered in its API's own shape: ended by an abort,
    without a token. A stream says so for each choice, and ends."""
    setup = Setup()
    known = setup.know(asked, path)
    answer = json.loads(_answer(setup, known))
    assert finishes(answer) == ["abort"] * known.call.total
    if asked.get("rid"):
        assert answer.get("id", answer.get("meta_info", {}).get("id")) == "mine"
    done = setup.complete(setup.fetch({**asked, "rid": None}, path), answer)
    assert done.reason is Reason.ABORT
    raw = _answer(setup, setup.know({**asked, "stream": True}, path))
    events = sse.Splitter().feed(raw)
    assert (b"".join(events), events[-1]) == (raw, sse.DONE)
    ended = [reason for event in events[:-1] for reason in finishes(parsed(event)) if reason]
    assert ended == ["abort"] * known.call.total


def test_aborted_stream_that_had_begun() -> None:
    """The last event of a choice keeps all that the choice had, for who reads nothing else."""
    setup = Setup()
    known = setup.know({**body(["a", "b"], rid="r"), "stream": True})
    begun, _ = natives.stream([("so far", 1), ("never sent", 2)], index=1)
    first, second, end = aborted.events(known, setup.exchange.mint(), 100.5, {1: worded(begun)})
    assert [parsed(event)["text"] for event in (first, second)] == ["", "so far"]
    assert [parsed(event)["index"] for event in (first, second)] == [0, 1]
    assert [finishes(parsed(event)) for event in (first, second)] == [["abort"], ["abort"]]
    assert end == sse.DONE


def test_usage_of_what_had_begun() -> None:
    """Of a stream of which something was read no usage is told, since nobody knows the tokens; of
    one of which nothing was, it is none."""
    setup = Setup()
    asked = {**CHATTING, "stream": True, "stream_options": {"include_usage": True}}
    known = setup.know(asked, CHAT)
    for has_begun, tokens in ((False, [0]), (True, [])):
        said = aborted.events(known, setup.exchange.mint(), 100.5, has_begun=has_begun)
        assert said[-1] == sse.DONE
        usages = [usage for event in said[:-1] if (usage := parsed(event).get("usage"))]
        assert [usage["completion_tokens"] for usage in usages] == tokens

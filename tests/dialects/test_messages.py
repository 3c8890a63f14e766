"""The dialect of `/v1/messages`, and that of `/v1/messages/count_tokens`."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.messages import COUNT_TOKENS, MESSAGES
from tests.conftest import corpus
from tests.dialects.bodies import item, minter, refusal
from tests.tables import each

USER = [{"role": "user", "content": "a"}]
ONE: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": USER}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def of_user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


INLINE = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
LINK = {"type": "url", "url": "http://x/y.png"}

KEPT: list[dict[str, Any]] = [
    # each of these is another call than all others
    {}, {"max_tokens": 8}, {"model": "n"}, {"temperature": 0}, {"temperature": None}, {"top_k": 1},
    {"top_p": 1}, {"stop_sequences": ["a"]}, {"system": "s"}, {"tools": []}, {"tools": [TOOL]},
    {"system": [{"type": "text", "text": "s"}]},
    {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
    {"tools": [{**TOOL, "strict": True}]}, {"tool_choice": {"type": "any"}},
    {"thinking": {"type": "adaptive"}}, {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"output_config": {"effort": "low"}}, {"betas": ["x"]}, {"n": 2}, {"seed": 1},
    {"service_tier": "auto"}, {"not_yet_invented": 1}, {"metadata": {"user_id": 1}},
    {"tools": [{"type": "bash_20250124", "name": "bash"}]},
    of_user({"type": "text", "text": "a"}), of_user(image(**INLINE)),
    of_user({"type": "document", "source": {"type": "text", "data": "x"}}),
    of_user({"type": "search_result", "source": "http://x", "title": "t", "content": []}),
]  # fmt: skip


def test_content() -> None:
    """Calls that may be answered differently have different keys; `n` does not exist here."""
    items = {item(MESSAGES, {**ONE, **more}) for more in KEPT}
    assert len(items) == len(KEPT)
    assert all(MESSAGES.read({**ONE, **more}).n == 1 for more in KEPT)


def test_transport() -> None:
    """How an answer is to come, and who the user is, is no part of the key."""
    same: list[dict[str, Any]] = [
        {"stream": True}, {"stream": False}, {"metadata": {"user_id": "u"}}, {"metadata": None},
        {"metadata": {}},
    ]  # fmt: skip
    assert {item(MESSAGES, {**ONE, **more}) for more in same} == {item(MESSAGES, ONE)}
    assert [MESSAGES.read({**ONE, "stream": on}).stream is None for on in (True, False)] == [
        False,
        True,
    ]


REFUSED: list[tuple[dict[str, Any], Reason]] = [
    ({"messages": []}, Reason.MALFORMED), ({"messages": "a"}, Reason.MALFORMED),
    ({"messages": None}, Reason.MALFORMED), ({"bootstrap_room": 1}, Reason.DISAGGREGATION),
    ({"mcp_servers": [{"url": "http://x"}]}, Reason.SERVER_TOOLS),
    ({"container": "c"}, Reason.SERVER_TOOLS),
    ({"tools": [TOOL, {"type": "web_search_20250305", "name": "x"}]}, Reason.SERVER_TOOLS),
    ({"tools": [{"type": "code_execution_20250522", "name": "x"}]}, Reason.SERVER_TOOLS),
    (of_user(image(**LINK)), Reason.MEDIA), (of_user({"type": "image"}), Reason.MEDIA),
    (of_user(image(type="file", file_id="x")), Reason.MEDIA),
    (of_user({"type": "image", "source": "x.png"}), Reason.MEDIA),
    (of_user({"type": "document", "source": LINK}), Reason.MEDIA),
    (of_user({"type": "document", "source": {"type": "content", "content": [image(**LINK)]}}),
     Reason.MEDIA),
    (of_user({"type": "tool_result", "tool_use_id": "t",
              "content": [{"type": "text", "text": "a"}, image(**LINK)]}), Reason.MEDIA),
    ({"system": [image(**LINK)]}, Reason.MEDIA),
]  # fmt: skip


@each(("more", "reason"), REFUSED)
def test_refusals(more: dict[str, Any], reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(MESSAGES, {**ONE, **more}) is reason
    assert refusal(COUNT_TOKENS, {**ONE, **more}) is reason


@each("stream", ["true", 1, 0])
def test_odd_stream(stream: Any) -> None:
    """What is no yes or no is upstream's to refuse."""
    assert refusal(MESSAGES, {**ONE, "stream": stream}) is Reason.MALFORMED


def test_no_stream() -> None:
    """Null means no, as SGLang has it."""
    call, plain = (MESSAGES.read({**ONE, "stream": stream}) for stream in (None, False))
    assert call.items == plain.items
    assert call.stream is None


def test_strange_bodies() -> None:
    """What has another form than it should is not looked into, and upstream's to refuse."""
    for more in ({"tools": 1}, {"tools": [1, {"type": 1}]}, {"system": 1}, {"messages": [1]},
                 of_user({"type": "tool_result", "content": 1}),
                 {"messages": [{"role": "user", "content": [1, {"content": [2]}]}]}):  # fmt: skip
        assert item(MESSAGES, {**ONE, **more}) != item(MESSAGES, ONE)


def test_what_is_sent() -> None:
    """Upstream is asked what the client asks."""
    call = MESSAGES.read(ONE)
    sent = MESSAGES.trim(call, [1], minter())
    assert (sent.body, sent.order, sent.n, sent.total) == (ONE, (0,), 1, 1)
    assert MESSAGES.repeated(ONE, 2) is None


def test_kinds() -> None:
    """A call whose likeliest token is always chosen is greedy; one with a seed is seeded."""
    for more, is_greedy in (({}, False), ({"temperature": 0}, True), ({"top_k": 1}, True)):
        assert MESSAGES.read({**ONE, **more}).is_greedy is is_greedy
    assert MESSAGES.read({**ONE, "seed": 1}).is_seeded
    assert COUNT_TOKENS.read(ONE).is_pure


WHOLE = [
    pair
    for pair in corpus("messages-")
    if pair["response"]["status"] == 200 and "stream" not in pair["name"]
]


@each("pair", WHOLE, ids=[pair["name"] for pair in WHOLE])
def test_recorded_answers(pair: dict[str, Any]) -> None:
    """A recorded answer is kept, and given, byte for byte."""
    body, recorded = json.loads(pair["request"]["body"]), pair["response"]["body"]
    if "server-tool" in pair["name"]:
        assert refusal(MESSAGES, body) is Reason.SERVER_TOOLS
        return
    call = MESSAGES.read(body)
    split = MESSAGES.split(call, MESSAGES.trim(call, [1], minter()), json.loads(recorded))
    assert (split.refusal, split.versions) == (None, frozenset())
    (sample,) = split.generations
    assert MESSAGES.write(call, [[sample.answer]]) == recorded.encode()
    assert sample.tokens == json.loads(recorded)["usage"]["output_tokens"]


def test_aborted() -> None:
    """An aborted call is answered as SGLang does it, which tells nobody."""
    call = MESSAGES.read(ONE)
    answer = json.loads(MESSAGES.aborted(call, "x", 1.5))
    assert answer["stop_reason"] == "end_turn"
    assert answer["content"] == [{"type": "text", "text": ""}]
    assert (answer["id"], answer["model"]) == ("msg_x", "m")
    assert MESSAGES.split(call, MESSAGES.trim(call, [1], minter()), answer).generations


@each("answer", [None, [], {}, {"input_tokens": "1"}, {"input_tokens": True}])
def test_unreadable_counts(answer: Any) -> None:
    """What is no count is not stored."""
    call = COUNT_TOKENS.read(ONE)
    with pytest.raises(Refused) as caught:
        COUNT_TOKENS.split(call, COUNT_TOKENS.trim(call, [1], minter()), answer)
    assert caught.value.reason is Reason.UNREADABLE


def test_counts() -> None:
    """A count is kept as it is."""
    call = COUNT_TOKENS.read(ONE)
    sent = COUNT_TOKENS.trim(call, [1], minter())
    split = COUNT_TOKENS.split(call, sent, {"input_tokens": 20})
    assert split.generations[0].answer == orjson.dumps({"input_tokens": 20})
    with pytest.raises(Refused) as caught:
        COUNT_TOKENS.split(call, sent, {"type": "error", "error": {"message": "no"}})
    assert caught.value.reason is Reason.ERROR

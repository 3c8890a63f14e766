"""The dialect of `/v1/responses`."""

from __future__ import annotations

import json
from typing import Any

import orjson

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.responses import RESPONSES
from sglang_cached_addon.dialects.responses_answer import ECHOED
from tests.conftest import corpus
from tests.dialects.bodies import item, minter, refusal
from tests.tables import each

Json = dict[str, Any]

ONE: Json = {"model": "m", "input": "a"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
GIVEN: Json = {
    "user": "u", "metadata": {"a": "b"}, "store": True, "prompt_cache_key": "k",
    "safety_identifier": "s",
}  # fmt: skip


def says(*parts: Any, **more: Any) -> Json:
    return {"input": [{"role": "user", "content": list(parts), **more}]}


def image(url: Any, kind: str = "input_image") -> Json:
    return {"type": kind, "image_url": url}


KEPT: list[Json] = [
    # each of these is another call than all others
    {}, {"max_output_tokens": 8}, {"model": "n"}, {"input": "b"}, {"input": ""}, {"temperature": 0},
    {"temperature": None}, {"top_k": 1}, {"top_p": 1}, {"stop": ["a"]}, {"instructions": "s"},
    {"tools": []}, {"tools": [TOOL]}, {"tools": [{**TOOL, "strict": True}]},
    {"tools": [{"type": "custom", "name": "f"}]}, {"tools": [{"type": "local_shell"}]},
    {"tools": [{"type": "namespace", "name": "f", "tools": [TOOL]}]}, {"tool_choice": "required"},
    {"parallel_tool_calls": False}, {"reasoning": {"effort": "low"}}, {"truncation": "auto"},
    {"text": {"format": {"type": "text"}}}, {"include": ["reasoning.encrypted_content"]},
    {"top_logprobs": 2}, {"chat_template_kwargs": {"x": 1}}, {"cache_salt": "x"},
    {"extra_key": "x"}, {"service_tier": "auto"}, {"n": 2}, {"seed": 1}, {"not_yet_invented": 1},
    {"background": False}, {"background": None}, says({"type": "input_text", "text": "a"}),
    says(image("data:image/png;base64,AAAA")), says(image({"url": "data:x"}, "image_url")),
    says({"type": "input_file", "file_data": "data:x"}),
    {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
    # what has another type than it should have, or is null, is upstream's to refuse
    {"metadata": None}, {"metadata": {"a": 1}}, {"user": None}, {"user": 1}, {"store": None},
    {"store": 1}, {"priority": "x"}, {"session_id": 1},
    # that it is given counts
    *({name: value} for name, value in GIVEN.items()),
]  # fmt: skip


def test_content() -> None:
    """Calls that may be answered differently have different keys; `n` does not exist here."""
    items = [item(RESPONSES, {**ONE, **more}) for more in KEPT]
    assert len(set(items)) == len(KEPT)
    assert all(RESPONSES.read({**ONE, **more}).n == 1 for more in KEPT)


def test_transport() -> None:
    """How an answer is to come, and whose it is, is no part of the key."""
    for more in ({"stream": True}, {"stream": False}, {"stream": None}, {"priority": 3},
                 {"routed_dp_rank": 0}, {"data_parallel_rank": None}, {"session_id": "s"},
                 {"session_id": None}, {"client_metadata": {"x": "y"}}):  # fmt: skip
        assert item(RESPONSES, {**ONE, **more}) == item(RESPONSES, ONE)
    others: Json = {"user": "v", "metadata": {}, "store": False, "prompt_cache_key": "",
                    "safety_identifier": "t"}  # fmt: skip
    assert set(GIVEN) == set(others) == set(ECHOED)
    for name in ECHOED:
        found = {item(RESPONSES, {**ONE, name: given[name]}) for given in (GIVEN, others)}
        assert len(found) == 1
    streams = [RESPONSES.read({**ONE, "stream": on}).stream for on in (True, False)]
    assert [stream is None for stream in streams] == [False, True]


REFUSED: list[tuple[Json, Reason]] = [
    ({"input": None}, Reason.MALFORMED), ({"input": []}, Reason.MALFORMED),
    ({"input": 1}, Reason.MALFORMED), ({"stream": 1}, Reason.MALFORMED),
    ({"bootstrap_room": 1}, Reason.DISAGGREGATION),
    ({"previous_response_id": "resp_1"}, Reason.STATE), ({"background": True}, Reason.STATE),
    ({"conversation": {"id": "c"}}, Reason.STATE), ({"prompt": {"id": "p"}}, Reason.STATE),
    ({"request_id": "resp_1"}, Reason.STATE), ({"input": [{"id": "msg_1"}]}, Reason.STATE),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, Reason.STATE),
    *(({"tools": [TOOL, {"type": kind}]}, Reason.SERVER_TOOLS) for kind in (
        "web_search", "web_search_preview", "code_interpreter", "file_search", "mcp", "computer",
        "computer_use_preview", "image_generation", "shell", "tool_search", 1,
    )),
    ({"tools": [{"type": "namespace", "name": "f", "tools": [{"type": "mcp"}]}]},
     Reason.SERVER_TOOLS),
    ({"input": [{"type": "additional_tools", "tools": [TOOL, {"type": "web_search"}]}]},
     Reason.SERVER_TOOLS),
    (says(image("http://x/y.png")), Reason.MEDIA), (says(image({"url": "x"}, "image_url")),
     Reason.MEDIA),
    (says({"type": "input_image", "file_id": "f"}), Reason.MEDIA),
    (says({"type": "input_file", "file_url": "http://x"}), Reason.MEDIA),
    ({"input": [{"type": "function_call_output", "output": [image("http://x")]}]}, Reason.MEDIA),
    ({"input": [{"type": "computer_call_output", "output": image("http://x")}]}, Reason.MEDIA),
    ({"stream": True, "include": ["message.output_text.logprobs"]}, Reason.STREAM),
]  # fmt: skip


@each(("more", "reason"), REFUSED)
def test_refusals(more: Json, reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(RESPONSES, {**ONE, **more}) is reason


def test_strange_bodies() -> None:
    """What has another form than it should is not looked into, and upstream's to refuse."""
    for more in ({"tools": 1}, {"tools": [1]}, {"input": [1]}, {"input": [{"content": 1}]},
                 {"input": [{"content": [1, {"content": [2]}], "output": 3}]}, {"include": 1},
                 {"include": 1, "stream": True}):  # fmt: skip
        assert item(RESPONSES, {**ONE, **more}) != item(RESPONSES, ONE)


def test_kinds() -> None:
    """A call whose likeliest token is always chosen is greedy; one with a seed is seeded; one that
    does not ask that its answer be not kept may be come back to."""
    for more, is_greedy in (({}, False), ({"temperature": 0}, True), ({"top_k": 1}, True)):
        assert RESPONSES.read({**ONE, **more}).is_greedy is is_greedy
    assert RESPONSES.read({**ONE, "seed": 1}).is_seeded
    stores = [RESPONSES.read({**ONE, **more}).may_be_kept for more in
              ({}, {"store": None}, {"store": True}, {"store": 0}, {"store": False})]  # fmt: skip
    assert stores == [True] * 4 + [False]


WHOLE = [
    pair for pair in corpus("responses") if pair["response"]["body"].startswith('{"id":"resp_')
]


@each("pair", WHOLE, ids=[pair["name"] for pair in WHOLE])
def test_recorded_answers(pair: dict[str, Any]) -> None:
    """A recorded answer is kept, and given, byte for byte."""
    body, recorded = json.loads(pair["request"]["body"]), pair["response"]["body"]
    if pair["name"] in ("responses-web-search", "responses-request-id"):
        assert refusal(RESPONSES, body) in (Reason.SERVER_TOOLS, Reason.STATE)
        return
    call = RESPONSES.read(body)
    split = RESPONSES.split(call, RESPONSES.trim(call, [1], minter()), json.loads(recorded))
    assert (split.refusal, split.versions) == (None, frozenset())
    (sample,) = split.generations
    assert RESPONSES.write(call, [[sample.answer]]) == recorded.encode()
    assert sample.tokens == json.loads(recorded)["usage"]["output_tokens"]


def test_own_words() -> None:
    """Each client's answer has what it has said itself, and the tools that a stream does not
    tell."""
    answer = {"id": "resp_1", "output": [], "tools": [], "user": "u", "store": True}
    call = RESPONSES.read({**ONE, "user": "v", "store": False, "tools": [TOOL]})
    wanted = {**answer, "tools": [TOOL], "user": "v", "store": False}
    assert RESPONSES.write(call, [[orjson.dumps(answer)]]) == orjson.dumps(wanted)
    event = {"type": "response.created", "response": answer}
    assert RESPONSES.rename(event, call)
    assert event["response"] == {**answer, "user": "v", "store": False}
    assert not RESPONSES.rename(event, call)


def test_aborted() -> None:
    """An aborted call is answered as SGLang does it, and not stored."""
    call = RESPONSES.read({**ONE, "user": "u"})
    answer = json.loads(RESPONSES.aborted(call, "x", 1.5))
    assert (answer["id"], answer["model"], answer["status"]) == ("resp_x", "m", "failed")
    assert answer["created_at"] == 1
    sent = RESPONSES.trim(call, [1], minter())
    assert RESPONSES.split(call, sent, answer).refusal is Reason.ABORT

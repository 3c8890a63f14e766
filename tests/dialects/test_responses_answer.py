"""Answers of `/v1/responses`."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.responses_answer import begun, own, split
from tests.tables import each

Json = dict[str, Any]

TEXT = {"type": "output_text", "text": "a"}
SAID = {"id": "msg_1", "type": "message", "role": "assistant", "content": [TEXT]}
CALLED = {"id": "fc_1", "type": "function_call", "name": "f", "arguments": "{}"}
GOOD: Json = {
    "id": "resp_1", "object": "response", "output": [SAID], "status": "completed",
    "usage": {"input_tokens": 3, "output_tokens": 2}, "error": None, "text": {"format": "x"},
}  # fmt: skip


def said(*items: Any, **more: Any) -> Json:
    return {**GOOD, "output": list(items), **more}


@each(
    ("answer", "reason"),
    [
        (None, Reason.UNREADABLE), ([GOOD], Reason.UNREADABLE), ({}, Reason.UNREADABLE),
        ({"error": {"message": "no"}}, Reason.ERROR),
        ({**GOOD, "object": "other"}, Reason.UNREADABLE),
        *((answer, Reason.UNREADABLE) for answer in (
            {**GOOD, "output": {}}, said("a"), said({}), said({"type": 1}),
            said({**SAID, "content": "a"}), said({**SAID, "content": [1]}),
            said({**SAID, "content": [{"text": 1}]}), said({**SAID, "content": [{"x": "a"}]}),
            said({**SAID, "type": "reasoning", "summary": [{"text": None}]}),
            said({**CALLED, "arguments": {}}), said({"type": "custom_tool_call"}),
        )),
    ],
)  # fmt: skip
def test_unreadable(answer: Any, reason: Reason) -> None:
    """What is no answer is not taken for one."""
    with pytest.raises(Refused) as caught:
        split(answer)
    assert caught.value.reason is reason


@each(
    ("answer", "refusal"),
    [
        (GOOD, None), (said(), None), (said(CALLED), None), (said({"type": "surprise"}), None),
        (said({"type": "reasoning", "summary": [{"text": "a"}], "content": None}), None),
        (said({**SAID, "content": [{"type": "refusal", "refusal": "no"}]}), None),
        ({**GOOD, "status": "incomplete"}, None),
        ({**GOOD, "status": "failed"}, Reason.ABORT),
        ({**GOOD, "status": "failed", "usage": None, "error": {"code": "x"}}, Reason.ERROR),
        ({**GOOD, "status": "cancelled"}, Reason.ABORT),
        ({**GOOD, "status": "in_progress"}, Reason.UNFINISHED),
        ({**GOOD, "status": "queued"}, Reason.UNFINISHED),
        ({**GOOD, "status": []}, Reason.UNFINISHED),
        ({**GOOD, "error": {"message": "no"}}, Reason.ERROR),
        *((said(SAID, {"type": kind}), Reason.SERVER_TOOLS) for kind in (
            "web_search_call", "file_search_call", "code_interpreter_call", "mcp_call",
            "mcp_list_tools", "image_generation_call",
        )),
    ],
)  # fmt: skip
def test_split(answer: Json, refusal: Reason | None) -> None:
    """An answer is a sample, which is stored if it is whole, and not of what a server did live."""
    found = split(answer)
    assert found.refusal is refusal
    (sample,) = found.generations
    assert sample.answer == orjson.dumps(answer)
    assert sample.tokens == (2 if answer["usage"] else 0)


def test_begun() -> None:
    """An answer begins with nothing of what it comes to, and has all members."""
    early = begun(GOOD, {})
    assert list(early) == list(GOOD)
    assert early == {**GOOD, "output": [], "status": "in_progress", "usage": None, "text": None}
    assert begun(GOOD, {"text": {"format": "x"}})["text"] == GOOD["text"]


def test_own() -> None:
    """What is echoed is the client's own, where the server echoes it, and the client gives it."""
    told = {**GOOD, "user": "u", "metadata": {"a": "b"}, "store": True, "instructions": "i"}
    said = {"user": "v", "metadata": {}, "store": False, "instructions": "j"}
    asked = {**said, "safety_identifier": "x", "model": "n"}
    assert own(told, asked) == {**told, **said}
    assert list(own(told, asked)) == list(told)
    assert own(told, {"user": None}) == told == own(told, {})

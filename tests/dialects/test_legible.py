"""What people read of calls and answers."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon import dialects
from sglang_cached_addon.dialects import legible
from sglang_cached_addon.dialects.base import generates
from tests.conftest import corpus

BY_PATH = {path: dialect for (_, path), dialect in dialects.installed().items()}
GENERATE, COMPLETIONS, CHAT = (
    BY_PATH[path] for path in ("/generate", "/v1/completions", "/v1/chat/completions")
)


def test_prompts() -> None:
    """The texts of a prompt are told, and nothing that only says how it is asked."""
    user = {"role": "user", "content": "hi"}
    for dialect, call, texts in (
        (GENERATE, {"text": "one", "sampling_params": {"stop": "x"}}, ["one"]),
        (GENERATE, {"input_ids": [1, 2]}, ["[1,2]"]),
        (COMPLETIONS, {"prompt": "one", "model": "m"}, ["one"]),
        (CHAT, {"messages": [user, {"role": "user", "content": "you"}]}, ["hi", "you"]),
        (CHAT, {"messages": []}, []),
        (None, {"a": ["b", {"c": "d"}], "e": 1}, ["b", "d"]),
    ):  # fmt: skip
        assert legible.asked(dialect, call) == texts, call


def test_recorded_answers() -> None:
    """Of each answer that was recorded, its text and why it has ended are told."""
    count = 0
    for one in corpus():
        dialect, body = BY_PATH.get(one["request"]["path"]), one["response"]["body"]
        is_told = dialect and generates(dialect) and one["response"]["status"] == 200
        if not dialect or not is_told or body[:1] not in ("{", "["):
            continue
        answer = json.loads(body)
        for each in answer if isinstance(answer, list) else [answer]:
            text, finish = _said(each)
            assert text in legible.said(dialect, each), one["name"]
            assert legible.finish_reason(each) == finish
            count += 1
    assert count > 20


def _said(answer: Any) -> tuple[str, str]:
    if answer.get("type") == "message":
        said = [block["text"] for block in answer["content"] if block["type"] == "text"]
        return "".join(said), answer["stop_reason"]
    if answer.get("object") == "response":
        parts = [part for item in answer["output"] for part in item.get("content", ())]
        said = [part["text"] for part in parts if part["type"] == "output_text"]
        cut = (answer["incomplete_details"] or {}).get("reason")
        return "".join(said), cut or answer["status"]
    if "meta_info" in answer:
        return answer["text"], answer["meta_info"]["finish_reason"]["type"]
    choice = answer["choices"][0]
    message = choice.get("message") or {"content": choice.get("text")}
    return message["content"] or "", choice["finish_reason"]


def test_odd_answers() -> None:
    """What is not as the API has it is told as far as it goes."""
    for answer in ({}, [], None, {"choices": [1]}, {"meta_info": {"finish_reason": "x"}}):
        for dialect in (GENERATE, COMPLETIONS, CHAT, None):
            assert isinstance(legible.said(dialect, answer), str)
        assert legible.finish_reason(answer) is None
    assert legible.said(None, {"a": "b", "c": [{"d": "e"}]}) == "b\ne"

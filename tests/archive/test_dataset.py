"""Chats of stored calls of each kind."""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.archive.dataset import chats
from sglang_cached_addon.catalog.entry import Entry
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.dialects import installed
from tests.tables import each

DIALECTS = {dialect.name: dialect for dialect in installed().values()}
ASKED = {"role": "user", "content": "hi"}


def entry(api: str, call: Any, *answers: Any) -> Entry:
    samples = [Sample(orjson.dumps(answer), 1.0, 0.5, 1) for answer in answers]
    return Entry(b"k" * 32, api, samples, orjson.dumps(call), 0, DIALECTS.get(api))


def chat(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
FLAT = {"type": "function", "name": "f", "parameters": {}, "description": None}
CALLED = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@each(
    ("found", "wanted"),
    [
        (
            entry(
                "openai-chat",
                {"messages": [{"role": "system", "content": "be kind"}, ASKED]},
                chat(role="assistant", content="one", reasoning_content="hm"),
                chat(role="assistant", content=None),
            ),
            [
                {"messages": [
                    {"role": "system", "content": "be kind"}, ASKED,
                    {"role": "assistant", "content": "one"},
                ]},
                {"messages": [
                    {"role": "system", "content": "be kind"}, ASKED,
                    {"role": "assistant", "content": ""},
                ]},
            ],
        ),
        (
            entry(
                "openai-chat",
                {"messages": [ASKED], "tools": [TOOL], "temperature": 1},
                chat(role="assistant", content=None, tool_calls=[{**CALLED, "index": 0}]),
            ),
            [{
                "messages": [ASKED, {"role": "assistant", "tool_calls": [CALLED]}],
                "tools": [TOOL],
            }],
        ),
        (
            entry("sglang-generate", {"text": "hi"}, {"text": "one", "meta_info": {}}),
            [{"messages": [ASKED, {"role": "assistant", "content": "one"}]}],
        ),
        (
            entry(
                "openai-completion",
                {"prompt": "hi", "echo": True},
                {"choices": [{"index": 0, "text": "hi there", "finish_reason": "stop"}]},
            ),
            [{"messages": [ASKED, {"role": "assistant", "content": " there"}]}],
        ),
        (
            entry("anthropic", {"system": "be kind", "messages": [ASKED]}, {"text": "one"}),
            [{"messages": [
                {"role": "system", "content": "be kind"}, ASKED,
                {"role": "assistant", "content": "one"},
            ]}],
        ),
        (entry("sglang-generate", {"input_ids": [1]}, {"text": "one", "meta_info": {}}), []),
        (entry("openai-completion", {"prompt": [1, 2]}, {"choices": []}), []),
        (entry("unknown", {"x": 1}, {"y": 2}), []),
        (
            entry(
                "anthropic-messages",
                {"messages": [ASKED], "system": "be kind", "max_tokens": 9},
                {"type": "message", "content": [{"type": "text", "text": "one"}]},
            ),
            [{"messages": [
                {"role": "system", "content": "be kind"}, ASKED,
                {"role": "assistant", "content": [{"type": "text", "text": "one"}]},
            ]}],
        ),
        # nothing was generated for these
        (
            entry(
                "openai-responses",
                {"input": "hi", "instructions": "be kind", "tools": [FLAT]},
                {"object": "response", "output": [
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
                    {"type": "message", "role": "assistant",
                     "content": [{"type": "output_text", "text": "one"}]},
                    {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                ]},
                {"object": "response", "output": []},
            ),
            [
                {"messages": [{"role": "system", "content": "be kind"}, ASKED,
                              {"role": "assistant", "content": "one", "tool_calls": [CALLED]}],
                 "tools": [TOOL]},
                {"messages": [{"role": "system", "content": "be kind"}, ASKED,
                              {"role": "assistant", "content": ""}], "tools": [TOOL]},
            ],
        ),
        (entry("sglang-tokenize", {"prompt": "hi"}, {"tokens": [1], "count": 1}), []),
        (entry("sglang-tokenize", {"messages": [ASKED]}, {"tokens": [1], "count": 1}), []),
        (entry("sglang-encode", {"text": "hi"}, {"embedding": [0.5]}), []),
        (entry("openai-embedding", {"input": "hi"}, {"data": [{"embedding": "AAAA"}]}), []),
        (entry("anthropic-count-tokens", {"messages": [ASKED]}, {"input_tokens": 1}), []),
    ],
)  # fmt: skip
def test_chats(found: Entry, wanted: list[dict[str, Any]]) -> None:
    """A chat has what was sent and what was said, in the members that data sets have."""
    assert list(chats(found)) == wanted

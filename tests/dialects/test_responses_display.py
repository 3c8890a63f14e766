"""How people see calls of `/v1/responses`."""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.dialects import installed, rendering
from sglang_cached_addon.dialects.display import Passage
from sglang_cached_addon.dialects.responses_display import Reader, ResponsesDisplay
from tests.conftest import corpus
from tests.tables import each

RESPONSES = installed()["POST", "/v1/responses"]


@each(
    ("said", "passage"),
    [
        ("Hi", Passage("user", "Hi")),
        ([{"role": "developer", "content": "Be kind."}], Passage("developer", "Be kind.")),
        ([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"text": "b"}]}],
         Passage("user", "ab")),
        ([{"type": "message", "role": "assistant", "content": [{"refusal": "no"}]}],
         Passage("assistant", "no")),
        ([{"type": "function_call", "name": "add", "arguments": '{"a":1}'}],
         Passage("tool call", 'add({"a":1})')),
        ([{"type": "custom_tool_call", "name": "sh", "input": "ls"}],
         Passage("tool call", "sh(ls)")),
        ([{"type": "function_call_output", "output": "3"}], Passage("tool result", "3")),
        ([{"type": "function_call_output", "output": [{"text": "3"}]}],
         Passage("tool result", "3")),
        ([{"type": "reasoning", "summary": [{"text": "hm"}]}], Passage("reasoning", "hm")),
        ([{"type": "item_reference", "id": "x"}],
         Passage("item_reference", '{"type":"item_reference","id":"x"}')),
        (["odd"], Passage("item", "odd")),
        ([{"role": "user", "content": None}], Passage("user", "")),
    ],
)  # fmt: skip
def test_input(said: Any, passage: Passage) -> None:
    """An item shows who says what, what was thought, and which tools are called."""
    assert ResponsesDisplay().passages({"input": said}) == [passage]


def test_besides() -> None:
    """What the model is told besides, and the tools that it may call, are shown."""
    schema = {"properties": {"a": {}, "b": {}}}
    tools = [{"name": "add", "description": "Adds.", "parameters": schema}, {"type": "x"}, 1]
    body = {"instructions": "Be kind.", "input": [], "tools": tools}
    assert ResponsesDisplay().passages(body) == [
        Passage("instructions", "Be kind."),
        Passage("tools (3)", 'add(a, b): Adds.\n{"type":"x"}\n1'),
    ]


RECORDED = {
    pair["name"]: pair["response"]["body"].encode()
    for pair in corpus("responses")
    if pair["response"]["status"] == 200
}


def lines(name: str, end: int | None = None) -> list[str]:
    data = RECORDED[name][:end]
    shown = rendering.answer(RESPONSES, data, [], asked=b"{}", is_stream="stream" in name)
    return [text for _, text in shown]


def test_recorded() -> None:
    """Of real answers, what was said, thought and called is shown, and how each has ended."""
    for name, data in RECORDED.items():
        found = "".join(lines(name))
        assert "unfinished" not in found and "no end" not in found, name
        if "stream" in name:
            continue
        answer = orjson.loads(data)
        cut = (answer["incomplete_details"] or {}).get("reason")
        tokens = answer["usage"]["output_tokens"]
        assert f"· {cut or answer['status']} · {tokens} tokens" in found
        for item in answer["output"]:
            texts = [part["text"] for part in item.get("content") or ()]
            texts += [item["arguments"]] if "arguments" in item else []
            for said in texts:
                assert "".join(said.splitlines()) in found, name


def test_streams_are_as_json() -> None:
    """A stream shows what JSON shows, however far it has come."""
    data = RECORDED["responses-stream"]
    events = [each for each in data.split(b"\n\n") if each]
    found = []
    for count in (3, 6, len(events)):
        said = b"\n\n".join(events[:count]) + b"\n\n"
        shown = rendering.answer(RESPONSES, said, [], asked=b"{}", is_stream=True)
        found.append("\n".join(text for _, text in shown))
    assert all("unfinished" in early and "no end" in early for early in found[:2])
    assert "count" in found[1] and "count man float" not in found[1]
    assert "count man float" in found[2] and "unfinished" not in found[2]


def test_calls_that_come() -> None:
    """A call of a tool is shown as it comes; what is left out is marked."""
    reader = Reader()
    item = {"type": "function_call", "name": "add", "arguments": ""}
    reader.skip()
    reader.add({"type": "response.output_item.added", "output_index": 0, "item": item})
    for piece in ('{"a"', ":1}"):
        reader.add({"type": "response.function_call_arguments.delta", "output_index": 0,
                    "delta": piece})  # fmt: skip
    (shown,) = reader.samples()
    assert (shown.text, shown.facts) == ('(tool calls)\nadd({"a":1})', ("unfinished",))
    reader.skip()
    reader.add({"type": "response.reasoning_text.delta", "output_index": 1, "delta": "hm"})
    (shown,) = reader.samples()
    assert shown.text == '(reasoning)\nhm\n\n(tool calls)\nadd({"a":1} [...] )'


def test_odd() -> None:
    """Whatever comes is shown as far as it goes."""
    for event in (None, 1, "x", [], {}, {"type": 1}, {"type": "x.delta"}, {"output": 1},
                  {"item": 1}, {"response": 1}, {"output": [1]}, {"error": None}):  # fmt: skip
        reader = Reader()
        reader.add(event)
        reader.skip()
        assert isinstance(reader.facts(), list)
        assert len(reader.samples()) <= 1
    assert not Reader().samples()

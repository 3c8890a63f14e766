"""Bodies as lines for people: those of real traffic, broken ones, and large ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from sglang_cached_addon.dialects import installed, layout, rendering
from sglang_cached_addon.dialects.base import Dialect
from sglang_cached_addon.dialects.rendering import MAX_EVENTS, MAX_JSON
from sglang_cached_addon.wire import sse
from tests.conftest import corpus
from tests.tables import each

ODD: list[Any] = [None, True, -1, 2.5, 10**18, "", "x", [], [None], {}, {"index": 1}, [[1]], [{}]]
"""What may stand anywhere in JSON."""

GENERATE, CHAT = installed()["POST", "/generate"], installed()["POST", "/v1/chat/completions"]


def shown(
    dialect: Dialect, data: bytes, asked: bytes = b"{}", *, is_stream: bool = False
) -> list[str]:
    lines = rendering.answer(dialect, data, ["HIT"], asked=asked, is_stream=is_stream)
    return [text for _, text in lines]


def recorded() -> Iterator[tuple[str, Dialect, bytes, bytes, bool]]:
    """Of all recorded calls of the APIs: name, dialect, request, answer, whether it is a stream."""
    for pair in corpus():
        asked, answered = pair["request"], pair["response"]
        dialect = installed().get((asked["method"], asked["path"]))
        if dialect and asked["body"] is not None:
            is_stream = "event-stream" in str(answered["headers"])
            body, said = (
                each if isinstance(each, str) else orjson.dumps(each).decode()
                for each in (asked["body"], answered["body"])
            )
            yield pair["name"], dialect, body.encode(), said.encode(), is_stream


def with_odd(value: Any) -> Iterator[Any]:
    """The value with each part of it, in turn, replaced by each of the odd ones. Of the hundreds of
    numbers of a vector, a few are as good as all."""
    yield from ODD
    parts = enumerate(value[:9]) if isinstance(value, list) else getattr(value, "items", list)()
    for place, part in list(parts):
        for odd in with_odd(part):
            changed = value.copy()
            changed[place] = odd
            yield changed


def texts(answer: Any) -> list[str]:
    """What a JSON answer says."""
    if isinstance(answer, list):
        return [native["text"] for native in answer if "text" in native]
    if answer.get("object") == "response":
        parts = [part for item in answer["output"] for part in item.get("content", ())]
        return [part["text"] for part in parts]
    if "choices" not in answer:
        parts = [answer, *answer.get("content", [])]
        said = [part["text"] for part in parts if "text" in part]
        return said if all(isinstance(text, str) for text in said) else said[0]
    return [choice.get("text") or choice["message"]["content"] for choice in answer["choices"]]


def test_recorded() -> None:
    """Of real calls, every prompt and every sample's text is shown, in JSON as in streams."""
    seen = 0
    for name, dialect, asked, said, is_stream in recorded():
        lines = "\n".join(text for _, text in rendering.request(dialect, asked, ["MISS"]))
        assert lines.startswith("cache: MISS\n"), name
        found = "\n".join(shown(dialect, said, asked, is_stream=is_stream))
        assert found.startswith(f"cache: HIT\n{dialect.name}"), name
        for text in [] if is_stream else texts(orjson.loads(said)):
            assert "".join(text.splitlines()) in found.replace("\n", ""), name
            seen += 1
    assert seen > 40


def test_stream_is_as_json() -> None:
    """Events that are put together look like the JSON answer of the same samples."""
    streams = {name: rest for name, *rest in recorded() if rest[-1]}
    dialect, asked, said, _ = streams["generate-stream-n2"]
    lines = shown(dialect, said, asked, is_stream=True)
    headings = [line for line in lines if line.startswith("──")]
    assert [heading.split(" · ")[:2] for heading in headings] == [
        ["── sample 1 of 2", "length"], ["── sample 2 of 2", "length"],
    ]  # fmt: skip
    assert not any("no end" in line for line in lines)
    assert any("no end" in line for line in shown(dialect, said[:-20], asked, is_stream=True))


def test_anything_can_be_shown() -> None:
    """No body makes a view fail: whatever stands at whichever place of a request, an answer or an
    event, and wherever a stream is cut."""
    chosen = (
        "generate-list-2-n2", "chat-tools", "completions-echo-logprobs", "messages-tools",
        "messages-tools-stream", "embeddings-small", "encode-pairs", "classify-list", "score-list",
        "rerank", "decisions", "systemone", "tokenize-list", "tokenize-chat", "detokenize-list",
        "count-tokens",
    )  # fmt: skip
    for name, dialect, asked, said, is_stream in recorded():
        if name in chosen:
            for body in with_odd(orjson.loads(asked)):
                list(rendering.request(dialect, orjson.dumps(body), []))
            for answer in [] if is_stream else with_odd(orjson.loads(said)):
                shown(dialect, orjson.dumps(answer), asked)
                shown(dialect, b"data: %b\n\n" % orjson.dumps(answer), asked, is_stream=True)
        if is_stream:
            for end in range(0, len(said), 37):
                shown(dialect, said[:end], asked, is_stream=True)
    for data in (b"", b"{", b"\xff", b"null", b"[" * 5000, b"data: {\n\n"):
        for is_stream in (False, True):
            shown(GENERATE, data, data, is_stream=is_stream)
        list(rendering.request(CHAT, data, []))


def test_errors() -> None:
    """What went wrong is shown, also where it comes in the middle of a stream."""
    error = {"error": {"message": "no room"}}
    assert '  "message": "no room"' in shown(GENERATE, orjson.dumps(error))
    data = b'data: {"text":"a","meta_info":{}}\n\ndata: %b\n\n' % orjson.dumps(error)
    lines = shown(GENERATE, data, is_stream=True)
    assert '  "message": "no room"' in lines and "a" in lines


@each("is_stream", [False, True])
def test_large_answers(is_stream: bool) -> None:
    """Of an answer of many megabytes, a bounded part is read and shown."""
    text = "word " * 20
    if is_stream:
        delta = orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})
        last = b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
        events = [delta] * (3 * MAX_EVENTS // len(delta))
        data = b"".join(map(sse.event, (*events, last, sse.DONE_DATA)))
    else:
        data = orjson.dumps({"choices": [{"message": {"content": text * (2 * MAX_JSON // 100)}}]})
    lines = shown(CHAT, data, is_stream=is_stream)
    assert sum(map(len, lines)) < layout.MAX_SHOWN
    assert any("left out" in line or "too many" in line for line in lines)
    if is_stream:
        assert any("[...]" in line or "more characters" in line for line in lines)
        assert any("· stop" in line for line in lines)


def test_entry() -> None:
    """An entry is shown as its calls and answers are."""
    answers = [
        {"text": "x", "finish_reason": "stop", "tokens": 3, "runs": ["monday"]},
        {"text": "y", "finish_reason": None, "tokens": 0, "runs": []},
    ]
    call = {"text": "Hello", "sampling_params": {"top_k": 1}}
    for api, words in (("sglang-generate", ["── prompt ─", "Hello"]), ("unknown", ['"Hello"'])):
        lines = [line for _, line in rendering.entry(api, call, answers)]
        assert lines[0] == f"{api} · 2 samples"
        for word in (*words, "top_k", "sample 1 of 2 · stop · 3 tokens · run monday", "y"):
            assert any(word in line for line in lines), word


def test_named_events() -> None:
    """Events that have names are shown as those that have none."""
    event = b'data: {"text":"a","meta_info":{}}\n\n'
    assert shown(GENERATE, b"event: message_start\n" + event, is_stream=True) == shown(
        GENERATE, event, is_stream=True
    )


def test_whose_samples() -> None:
    """Where a call has several prompts, each sample says whose it is."""
    native = {"text": "x", "meta_info": {}}
    asked = orjson.dumps({"text": ["a", "b"], "sampling_params": {"n": 2}})
    lines = shown(GENERATE, orjson.dumps([native] * 4), asked)
    headings = [line for line in lines if line.startswith("──")]
    assert [heading.split(" · ")[0] for heading in headings] == [
        f"── prompt {i}, sample {j} of 2" for i in (1, 2) for j in (1, 2)
    ]

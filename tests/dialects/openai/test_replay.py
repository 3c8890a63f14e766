"""Samples to streams."""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.dialects import chat, completions
from sglang_cached_addon.dialects.openai import replay
from sglang_cached_addon.wire import sse
from tests.dialects import test_chat_stream as chats
from tests.dialects.streams import by_choice, worded
from tests.dialects.test_completions_stream import scores, stream


def sample_of(tokens: int, prompt: int = 3, created: int = 7, **more: Any) -> Generation:
    told: Any = {"prompt_tokens": prompt, "total_tokens": prompt + tokens}
    told |= {"completion_tokens": tokens, "prompt_tokens_details": None, "reasoning_tokens": 0}
    answer = {"id": f"id{tokens}", "object": "text_completion", "created": created, "model": "m"}
    answer |= {"choices": [{"index": 0, "text": "x"}], "usage": told, "metadata": {}, **more}
    return Generation(0, orjson.dumps(answer), tokens)


def test_usage_of_a_whole_answer() -> None:
    """The usage of a whole answer counts each prompt once and all samples."""
    call = completions.DIALECT.read({"prompt": ["a", "b"], "n": 2, "stream": True})
    pools = [[sample_of(1), sample_of(2)], [sample_of(4, 5), sample_of(8, 5)]]
    said = completions.DIALECT.usage(call, pools)
    wanted = {"prompt_tokens": 8, "total_tokens": 23, "completion_tokens": 15}
    assert said
    assert orjson.loads(sse.data(said) or b"")["usage"] == {**wanted, "reasoning_tokens": 0}
    whole = chat.DIALECT.usage(call, pools)
    assert whole
    found = orjson.loads(sse.data(whole) or b"")
    assert found["usage"] == {**wanted, "prompt_tokens_details": None, "reasoning_tokens": 0}
    assert found["object"] == "chat.completion.chunk"
    assert found["id"] == "id1"
    assert completions.DIALECT.usage(call, [pools[0], [sample_of(1, usage=None)]]) is None


def test_created() -> None:
    """All choices of a stream have one time."""
    call = completions.DIALECT.read({"prompt": "a", "n": 2, "stream": True})
    script = completions.DIALECT.script(call, [[sample_of(1, created=5), sample_of(2, created=6)]])
    found = [orjson.loads(sse.data(events[0]) or b"") for events in script.deltas]
    assert [event["created"] for event in found] == [5, 5]
    assert [event["choices"][0]["index"] for event in found] == [0, 1]
    assert by_choice(script.in_turn()) == [list(events) for events in script.deltas]


def test_fewer_samples_than_asked_for() -> None:
    """Stored choices have their numbers where others are still to come."""
    call = completions.DIALECT.read({"prompt": ["a", "b", "c"], "n": 2, "stream": True})
    script = completions.DIALECT.script(call, [[sample_of(1)], [], [sample_of(2), sample_of(3)]])
    found = [orjson.loads(sse.data(events[0]) or b"") for events in script.deltas]
    assert [event["choices"][0]["index"] for event in found] == [0, 4, 5]


def test_renumber() -> None:
    """Events of an upstream call get the numbers of the client's answer."""
    event = stream(["a"], index=1, logprobs=[scores(0, 1)])[0]
    replay.renumber(event, [2, 5], sample_of(1, created=9))
    assert event["choices"][0]["index"] == 5
    assert event["created"] == 9
    wanted = {**stream(["a"], index=5, logprobs=[scores(0, 1)])[0], "created": 9, "id": "id1"}
    assert worded(event) == worded(wanted)


def test_without_usage() -> None:
    """A chunk whose usage only the proxy has asked for is as the server writes one without: the
    chunks that it writes fast have no such member, all others have null."""
    plain = chats.says("a")
    for event, wanted in (
        (chats.says("a", usage=chats.counts(1)), plain),
        (chats.passes("a", usage=chats.counts(1)), chats.passes("a")),
        (stream(["a"], counts=[1])[0], stream(["a"])[0]),
        (plain, plain),
    ):
        assert replay.without_usage(worded(event), event) == worded(wanted)

"""OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.chat import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import item, minter, refusal
from tests.tables import each

PAIRS = [
    pair
    for pair in corpus("chat-")
    if pair["response"]["status"] == 200 and "stream" not in pair["name"]
]
PICTURE = "data:image/png;base64,AAAA"
UNIQUE = f"{1:032x}"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "a"}], **fields}


def saying(content: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": content}])


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CONTENT: dict[str, tuple[Any, Any]] = {
    "messages": ([{"role": "user", "content": "b"}], [{"role": "system", "content": "a"}]),
    "model": ("m:a", "m:b"),
    "lora_path": ("a", "b"),
    "max_completion_tokens": (1, 2),
    "max_tokens": (1, 2),
    "temperature": (0, 1),
    "top_p": (0.5, 1),
    "top_k": (-1, 1),
    "min_p": (0, 0.5),
    "repetition_penalty": (1, 2),
    "frequency_penalty": (0, 1),
    "presence_penalty": (0, 1),
    "logit_bias": ({"1": 1.0}, {"1": 2.0}),
    "seed": (1, 2),
    "stop": ("a", ["a"]),
    "stop_token_ids": ([1], [2]),
    "stop_regex": ("a", ["a"]),
    "min_tokens": (0, 1),
    "no_stop_trim": (True, False),
    "ignore_eos": (True, False),
    "skip_special_tokens": (True, False),
    "response_format": ({"type": "text"}, {"type": "json_object"}),
    "regex": ("a", "b"),
    "ebnf": ("a", "b"),
    "tools": ([TOOL], [TOOL, TOOL]),
    "tool_choice": ("auto", "required"),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("low", 0.5),
    "reasoning": ({"effort": "low"}, {"enabled": False}),
    "thinking": (True, False),
    "task": ("a", "b"),
    "chat_template_kwargs": ({"enable_thinking": True}, {"enable_thinking": False}),
    "continue_final_message": (True, False),
    "use_audio_in_video": (True, False),
    "max_dynamic_patch": (1, 2),
    "min_dynamic_patch": (1, 2),
    "images_config": ({"a": 1}, {"a": 2}),
    "video_config": ({"a": 1}, {"a": 2}),
    "mm_processor_kwargs": ({"a": 1}, {"a": 2}),
    "custom_logit_processor": ("a", "b"),
    "custom_params": ({"a": 1}, {"a": 2}),
    "watermark": ({"a": 1}, {"a": 2}),
    "input_ids": ([1], [2]),
    "logprobs": (True, False),
    "top_logprobs": (0, 1),
    "separate_reasoning": (True, False),
    "stream_reasoning": (True, False),
    "return_hidden_states": (True, "last"),
    "return_routed_experts": (True, False),
    "routed_experts_start_len": (0, 1),
    "return_cached_tokens_details": (True, False),
    "return_spec_tokens_details": (True, False),
    "return_prompt_token_ids": (True, False),
    "return_token_ids": (True, False),
    "return_meta_info": (True, False),
    "return_input_ids_in_sglext": (True, False),
    "return_output_ids_in_sglext": (True, False),
    "return_sampling_mask": (True, False),
    "sampling_logprobs_mode": ("a", "b"),
    "return_flat_raw_output_top_logprobs": (True, False),
    "return_flat_raw_output_top_logprobs_b64": (True, False),
    "extra_key": ("a", "b"),
    "cache_salt": ("a", "b"),
    "not_yet_invented": ("a", "b"),
}


@each(("name", "values"), CONTENT.items(), ids=CONTENT)
def test_content(name: str, values: tuple[Any, Any]) -> None:
    """Requests that may be answered differently have different keys."""
    bodies = [chat(**{name: value}) for value in values]
    bodies += [chat()] if name == "messages" else [chat(), chat(**{name: None})]
    assert len({item(DIALECT, body) for body in bodies}) == len(bodies)


@each(
    "messages",
    [
        [[{"role": "user", "content": "a"}], [{"content": "a", "role": "user"}]],
        [
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
            [{"role": "user", "content": "b"}, {"role": "user", "content": "a"}],
            [{"role": "user", "content": "ab"}],
        ],
        [[{"role": "user", "content": "a"}], [{"role": "user", "content": "a", "name": "x"}]],
        [
            [{"role": "assistant", "content": None}],
            [{"role": "assistant", "content": ""}],
            [{"role": "assistant"}],
        ],
        [
            [{"role": "user", "content": "a"}],
            [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        ],
        [
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}],
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": PICTURE + "A"}}],
                }
            ],
        ],
    ],
)
def test_different_conversations(messages: list[list[dict[str, Any]]]) -> None:
    """Different conversations have different keys."""
    assert len({item(DIALECT, chat(messages=each)) for each in messages}) == len(messages)


@each("n", [1, 2, 7])
def test_n_is_not_part_of_the_key(n: int) -> None:
    """The number of samples is not part of the key."""
    assert item(DIALECT, chat(n=n)) == item(DIALECT, chat())


@each(
    ("body", "n", "rids"),
    [
        (chat(), 1, ()),
        (chat(n=4), 4, ()),
        (chat(rid="r"), 1, ("r",)),
        (chat(rid="r", n=2), 2, ()),
        (saying([{"type": "image_url", "image_url": {"url": PICTURE}}]), 1, ()),
        (saying([{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]), 1, ()),
        (chat(messages=["upstream will refuse this"]), 1, ()),
    ],
)
def test_read(body: dict[str, Any], n: int, rids: tuple[str, ...]) -> None:
    """A body is read as the client means it."""
    call = DIALECT.read(body)
    assert (call.n, len(call.items), call.batched, call.rids) == (n, 1, False, rids)
    assert call.body == body


def part(name: str, url: Any) -> dict[str, Any]:
    return saying([{"type": "text", "text": "a"}, {"type": name, name: url}])


@each(
    ("body", "reason"),
    [
        ({"model": "m"}, Reason.MALFORMED),
        (chat(messages=None), Reason.MALFORMED),
        (chat(messages=[]), Reason.MALFORMED),
        (chat(messages="a"), Reason.MALFORMED),
        (chat(messages={"role": "user"}), Reason.MALFORMED),
        (chat(n=0), Reason.MALFORMED),
        (chat(n=None), Reason.MALFORMED),
        (chat(n=True), Reason.MALFORMED),
        (chat(n=1.0), Reason.MALFORMED),
        (chat(rid=["x"]), Reason.MALFORMED),
        (chat(rid=1), Reason.MALFORMED),
        (chat(n=2, return_routed_experts=True), Reason.INSEPARABLE),
        (chat(stream=True, return_hidden_states=True), Reason.STREAM),
        (chat(stream="yes"), Reason.MALFORMED),
        (chat(previous_response_id="x"), Reason.STATE),
        (chat(session_params={"id": "x"}), Reason.STATE),
        (chat(bootstrap_host="h"), Reason.DISAGGREGATION),
        (part("image_url", {"url": "http://example.com/a.png"}), Reason.MEDIA),
        (part("image_url", "http://example.com/a.png"), Reason.MEDIA),
        (part("video_url", {"url": "file:///tmp/a.mp4"}), Reason.MEDIA),
        (part("audio_url", {"url": "/tmp/a.wav"}), Reason.MEDIA),
        (part("image", "a.png"), Reason.MEDIA),
        (part("video", "a.mp4"), Reason.MEDIA),
        (part("audio", ["a.wav"]), Reason.MEDIA),
    ],
)
def test_refusals(body: dict[str, Any], reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(DIALECT, body) is reason


@each("place", [0, 1, 2])
def test_media_in_any_message(place: int) -> None:
    """Media by URL or path is refused."""
    messages = [{"role": "user", "content": "a"} for _ in range(3)]
    messages[place] = part("image_url", {"url": "http://example.com/a.png"})["messages"][0]
    assert refusal(DIALECT, chat(messages=messages)) is Reason.MEDIA


@each(
    ("body", "short", "wanted"),
    [
        (chat(), 1, chat()),
        (chat(n=3), 3, chat(n=3)),
        (chat(n=3), 2, chat(n=2)),
        (chat(n=3, bogus={"x": [1]}), 1, chat(n=1, bogus={"x": [1]})),
    ],
)
def test_trim(body: dict[str, Any], short: int, wanted: dict[str, Any]) -> None:
    """An upstream call asks for what is short, and for nothing else."""
    before = copy.deepcopy(body)
    sent = DIALECT.trim(DIALECT.read(body), (short,), minter())
    assert (sent.body, sent.order, sent.n, sent.rids) == (wanted, (0,), short, {})
    assert body == before


@each(
    ("body", "short", "rids"),
    [
        (chat(rid="r"), 1, {"r": UNIQUE}),
        (chat(rid="r", n=2), 2, {}),
        (chat(rid="r", n=2), 1, {}),
    ],
)
def test_trim_makes_the_rid_unique(body: dict[str, Any], short: int, rids: dict[str, str]) -> None:
    """An upstream call has ids of its own, so that two calls can have the same `rid`."""
    before = copy.deepcopy(body)
    sent = DIALECT.trim(DIALECT.read(body), (short,), minter())
    assert (sent.body["rid"], sent.rids, body) == (UNIQUE, rids, before)


def answer(*contents: str, finish: str = "stop") -> dict[str, Any]:
    """An answer with three tokens for each content."""
    return {
        "id": "up",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": k,
                "message": {
                    "role": "assistant",
                    "content": text,
                    "reasoning_content": f"why {text}",
                    "tool_calls": [{"id": f"call_{text}", "index": 0}],
                },
                "logprobs": {"content": [{"token": text}] * 3},
                "finish_reason": finish,
                "novelty": text,
            }
            for k, text in enumerate(contents)
        ],
        "usage": {
            "prompt_tokens": 5,
            "total_tokens": 5 + 3 * len(contents),
            "completion_tokens": 3 * len(contents),
        },
        "sglext": {"output_ids": [[ord(text)] for text in contents]},
    }


@each(("have", "want"), list(itertools.product((1, 2, 3), repeat=2)))
def test_samples_of_one_call_serve_another(have: int, want: int) -> None:
    """Samples of one call answer another with fewer or more."""
    first = DIALECT.read(chat(n=have))
    sent = DIALECT.trim(first, (have,), minter())
    pool = [g.answer for g in DIALECT.split(first, sent, answer(*"abc"[:have])).generations]
    call = DIALECT.read(chat(n=want))
    if want > have:
        sent = DIALECT.trim(call, (want - have,), minter())
        rest = DIALECT.split(call, sent, answer(*"abc"[have:want]))
        pool += [g.answer for g in rest.generations]
    assert json.loads(DIALECT.write(call, [pool[:want]])) == answer(*"abc"[:want])


@each(
    ("value", "refusal"),
    [
        (answer("a", "b"), None),
        (answer("a", "b", finish="length"), None),
        (answer("a", "b", finish="tool_calls"), None),
        (answer("a", "b", finish="abort"), Reason.ABORT),
    ],
)
def test_what_may_be_stored(value: dict[str, Any], refusal: Reason | None) -> None:
    """A sample that did not end by itself is not stored."""
    call = DIALECT.read(chat(n=2))
    split = DIALECT.split(call, DIALECT.trim(call, (2,), minter()), value)
    assert split.refusal is refusal


@each("contents", ["", "a", "abc"])
def test_wrong_number_of_choices(contents: str) -> None:
    """An answer with another number of choices is refused."""
    call = DIALECT.read(chat(n=2))
    with pytest.raises(Refused) as caught:
        DIALECT.split(call, DIALECT.trim(call, (2,), minter()), answer(*contents))
    assert caught.value.reason is Reason.UNREADABLE


@each("pair", PAIRS, ids=[pair["name"] for pair in PAIRS])
def test_recorded_answers_come_together_again(pair: dict[str, Any]) -> None:
    """A recorded answer is the same after it was taken apart and written."""
    body, recorded = json.loads(pair["request"]["body"]), json.loads(pair["response"]["body"])
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, (call.n,), minter())
    split = DIALECT.split(call, sent, recorded)
    assert split.refusal is None
    pool = [g.answer for g in split.generations]
    assert json.loads(DIALECT.write(call, [pool])) == recorded

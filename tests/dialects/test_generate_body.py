"""Bodies of `/generate`."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.generate import DIALECT
from tests.tables import each

PARAMS = {"temperature": 0.5, "max_new_tokens": 8}


PICTURE = "data:image/png;base64,AAAA"


def one(**fields: Any) -> dict[str, Any]:
    return {"text": "a", "sampling_params": PARAMS, **fields}


def batch(**fields: Any) -> dict[str, Any]:
    return {"text": ["a", "b", "c"], "sampling_params": PARAMS, **fields}


def with_n(body: dict[str, Any], n: int) -> dict[str, Any]:
    return {**body, "sampling_params": {**body["sampling_params"], "n": n}}


def item(body: dict[str, Any]) -> bytes:
    call = DIALECT.read(body)
    assert len(call.items) == 1
    return call.items[0]


def refusal(body: dict[str, Any]) -> Reason:
    with pytest.raises(Refused) as caught:
        DIALECT.read(body)
    return caught.value.reason


CONTENT: dict[str, tuple[Any, Any]] = {
    "text": ("b", "A"),
    "input_ids": ([1], [2]),
    "input_embeds": ([[0.5]], [[0.25]]),
    "image_data": (PICTURE, PICTURE + "A"),
    "video_data": ([PICTURE], [PICTURE, PICTURE]),
    "audio_data": ({"url": PICTURE}, {"url": PICTURE + "A"}),
    "mm_hashes": (["a"], ["b"]),
    "mm_content_hashes": (["a"], ["b"]),
    "modalities": (["image"], ["video"]),
    "use_audio_in_video": (True, False),
    "video_config": ({"fps": 1}, {"fps": 2}),
    "images_config": ({"a": 1}, {"a": 2}),
    "mm_processor_kwargs": ({"a": 1}, {"a": 2}),
    "max_dynamic_patch": (1, 2),
    "min_dynamic_patch": (1, 2),
    "image_max_dynamic_patch": (1, 2),
    "video_max_dynamic_patch": (1, 2),
    "watermark": ({"a": 1}, {"a": 2}),
    "lora_path": ("a", "b"),
    "lora_id": ("a", "b"),
    "custom_logit_processor": ("a", "b"),
    "positional_embed_overrides": ([1], [2]),
    "require_reasoning": (True, False),
    "max_thinking_tokens": (1, 2),
    "return_logprob": (True, False),
    "logprob_start_len": (-1, 0),
    "top_logprobs_num": (0, 1),
    "token_ids_logprob": ([1], [2]),
    "return_text_in_logprobs": (True, False),
    "return_flat_raw_top_logprobs": (True, False),
    "return_flat_raw_output_top_logprobs": (True, False),
    "return_flat_raw_top_logprobs_b64": (True, False),
    "return_sampling_mask": (True, False),
    "sampling_logprobs_mode": ("a", "b"),
    "return_hidden_states": (True, False),
    "return_routed_experts": (True, False),
    "routed_experts_start_len": (0, 1),
    "return_indexer_topk": (True, False),
    "return_prompt_token_ids": (True, False),
    "multi_item_delimiter_indices": ([1], [2]),
    "token_indices_to_pool": ([1], [2]),
    "extra_key": ("a", "b"),
    "cache_salt": ("a", "b"),
    "return_bytes": (True, False),
    "return_entropy": (True, False),
    "model": ("a", "b"),
    "n": (1, 2),
    "temperature": (0, 1),
    "not_yet_invented": ("a", "b"),
}


@each(
    ("body", "n", "size", "batched"),
    [
        ({"text": "a"}, 1, 1, False),
        ({"text": ""}, 1, 1, False),
        ({"text": "a", "sampling_params": None}, 1, 1, False),
        (with_n(one(), 1), 1, 1, False),
        (with_n(one(), 5), 5, 1, False),
        ({"text": ["a"]}, 1, 1, True),
        (with_n(batch(), 2), 2, 3, True),
        ({"input_ids": [1, 2]}, 1, 1, False),
        ({"input_ids": [[1, 2], [3]]}, 1, 2, True),
        ({"input_embeds": [[0.5, 1]]}, 1, 1, False),
        ({"input_embeds": [[[0.5]], [[1]]]}, 1, 2, True),
        ({"text": ["a", "b"], "sampling_params": [{"n": 2}, {"n": 2, "top_k": 1}]}, 2, 2, True),
        ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {}]}, 1, 2, True),
        ({"text": "a", "input_ids": [1, 2, 3]}, 1, 1, False),
        ({"text": ["a", "b"], "input_ids": [[1], [2]]}, 1, 2, True),
    ],
)
def test_read(body: dict[str, Any], n: int, size: int, batched: bool) -> None:
    """A body is read as the client means it."""
    call = DIALECT.read(body)
    assert (call.n, len(call.items), call.batched, call.body) == (n, size, batched, body)


@each(
    ("body", "reason"),
    [
        ({}, Reason.MALFORMED),
        ({"text": None}, Reason.MALFORMED),
        ({"text": 1}, Reason.MALFORMED),
        ({"text": []}, Reason.MALFORMED),
        ({"text": ["a", 1]}, Reason.MALFORMED),
        ({"text": [["a"]]}, Reason.MALFORMED),
        ({"text": {"a": 1}}, Reason.MALFORMED),
        ({"input_ids": []}, Reason.MALFORMED),
        ({"input_ids": [[]]}, Reason.MALFORMED),
        ({"input_ids": [1, [2]]}, Reason.MALFORMED),
        ({"input_ids": [True]}, Reason.MALFORMED),
        ({"input_ids": [1.0]}, Reason.MALFORMED),
        ({"input_ids": ["1"]}, Reason.MALFORMED),
        ({"input_ids": "1"}, Reason.MALFORMED),
        ({"input_embeds": [1.0]}, Reason.MALFORMED),
        ({"input_embeds": [[]]}, Reason.MALFORMED),
        ({"text": ["a"], "input_ids": [1]}, Reason.MALFORMED),
        ({"text": "a", "input_ids": [[1]]}, Reason.MALFORMED),
        ({"text": ["a", "b"], "input_ids": [[1]]}, Reason.MALFORMED),
        (one(sampling_params=1), Reason.MALFORMED),
        (one(sampling_params=[PARAMS]), Reason.MALFORMED),
        (batch(sampling_params=[PARAMS]), Reason.MALFORMED),
        (batch(sampling_params=[PARAMS, PARAMS, None]), Reason.MALFORMED),
        (batch(sampling_params=[{"n": 1}, {"n": 2}, {"n": 1}]), Reason.MALFORMED),
        (batch(sampling_params=[{"n": 2}, {"n": 2}, {}]), Reason.MALFORMED),
        (with_n(one(), 0), Reason.MALFORMED),
        (with_n(one(), -1), Reason.MALFORMED),
        (with_n(one(), True), Reason.MALFORMED),
        (one(sampling_params={"n": None}), Reason.MALFORMED),
        (one(sampling_params={"n": 2.0}), Reason.MALFORMED),
        (one(sampling_params={"n": "2"}), Reason.MALFORMED),
        (one(sampling_params={"beam_width": 2}), Reason.BEAM),
        (one(sampling_params={"beam_width": "2"}), Reason.BEAM),
        (batch(sampling_params=[{}, {"beam_width": 2}, {}]), Reason.BEAM),
        (one(lora_path=["x"]), Reason.MALFORMED),
        (one(return_logprob=[True]), Reason.MALFORMED),
        (one(rid=["x"]), Reason.MALFORMED),
        (batch(lora_path=["x"]), Reason.MALFORMED),
        (batch(rid=["x", "y"]), Reason.MALFORMED),
        (batch(rid=["x", "y", "y"]), Reason.MALFORMED),
        (batch(stop=["x", "y", "z"]), Reason.INSEPARABLE),
        (batch(lora_id=["x", "y", "z"]), Reason.INSEPARABLE),
        (batch(not_yet_invented=[1, 2, 3]), Reason.INSEPARABLE),
        (batch(image_data=[PICTURE] * 3), Reason.INSEPARABLE),
        (batch(image_data=["http://example.com/a.png"] * 3), Reason.MEDIA),
        (one(image_data="http://example.com/a.png"), Reason.MEDIA),
        (one(video_data=["/tmp/a.mp4"]), Reason.MEDIA),
        (one(audio_data={"url": "file:///tmp/a.wav"}), Reason.MEDIA),
        (one(stream=True, return_hidden_states=True), Reason.STREAM),
        (one(stream="true"), Reason.MALFORMED),
        (one(session_params={"id": "s"}), Reason.STATE),
        (one(bootstrap_room=1), Reason.DISAGGREGATION),
    ],
)  # fmt: skip
def test_refusals(body: dict[str, Any], reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(body) is reason


FORM_DEPENDENT = [
    "image_data", "video_data", "audio_data", "mm_hashes", "mm_content_hashes", "modalities",
    "use_audio_in_video", "video_config", "images_config", "max_dynamic_patch",
    "min_dynamic_patch", "image_max_dynamic_patch", "video_max_dynamic_patch",
    "positional_embed_overrides", "multi_item_delimiter_indices", "token_indices_to_pool",
]  # fmt: skip


@each("name", FORM_DEPENDENT)
@each("body", [batch(), {"text": ["a"]}, with_n(one(), 2)])
def test_what_sglang_drops_from_a_batch(name: str, body: dict[str, Any]) -> None:
    """Fields that SGLang drops from a batch are refused there."""
    value = PICTURE if name.endswith("_data") else CONTENT[name][0]
    assert refusal({**body, name: value}) is Reason.INSEPARABLE
    assert DIALECT.read({**body, name: None})


N1_LISTS = {
    "return_logprob": [True, False, True],
    "logprob_start_len": [0, 1, 2],
    "top_logprobs_num": [0, 1, 2],
    "token_ids_logprob": [[1], [2], [3]],
    "return_sampling_mask": [True, False, True],
    "sampling_logprobs_mode": ["a", "b", "c"],
    "custom_logit_processor": ["a", "b", "c"],
}


LISTS = {
    "lora_path": ["x", "y", "z"],
    "extra_key": ["x", "y", "z"],
    "cache_salt": ["x", "y", "z"],
    "watermark": [{"a": 1}, None, {"a": 2}],
    "return_hidden_states": [True, False, True],
}


@each(("name", "values"), N1_LISTS.items(), ids=N1_LISTS)
def test_lists_that_need_n_1(name: str, values: list[Any]) -> None:
    """Lists that SGLang takes only with `n=1` are refused otherwise."""
    assert len(DIALECT.read(batch(**{name: values})).items) == 3
    assert refusal(with_n(batch(**{name: values}), 2)) is Reason.MALFORMED


@each(("name", "values"), LISTS.items(), ids=LISTS)
@each("n", [1, 2])
def test_lists_with_a_value_for_each_prompt(name: str, values: list[Any], n: int) -> None:
    """A list with a value for each prompt gives each prompt its own."""
    call = DIALECT.read(with_n(batch(**{name: values}), n))
    assert call.items == tuple(
        item(one(text=text, **{name: value})) for text, value in zip("abc", values, strict=True)
    )

"""Bodies of `/generate`."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.generate import DIALECT
from tests.dialects.bodies import item, refusal
from tests.dialects.test_generate import LISTS, N1_LISTS, batch, one, with_n
from tests.tables import each

PARAMS = {"temperature": 0.5, "max_new_tokens": 8}
PICTURE = "data:image/png;base64,AAAA"


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
        ({"input_ids": [1, 2]}, 1, 1, False), ({"input_ids": [[1, 2], [3]]}, 1, 2, True),
        ({"input_embeds": [[0.5, 1]]}, 1, 1, False),
        ({"input_embeds": [[[0.5]], [[1]]]}, 1, 2, True),
        ({"text": ["a", "b"], "sampling_params": [{"n": 2}, {"n": 2, "top_k": 1}]}, 2, 2, True),
        ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {}]}, 1, 2, True),
        ({"text": "a", "input_ids": [1, 2, 3]}, 1, 1, False),
        ({"text": ["a", "b"], "input_ids": [[1], [2]]}, 1, 2, True),
    ],
)  # fmt: skip
def test_read(body: dict[str, Any], n: int, size: int, batched: bool) -> None:
    """A body is read as the client means it."""
    call = DIALECT.read(body)
    assert (call.n, len(call.items), call.batched, call.body) == (n, size, batched, body)


@each(
    ("body", "reason"),
    [
        *((body, Reason.MALFORMED) for body in (
            {}, *({"text": text} for text in (None, 1, [], ["a", 1], [["a"]], {"a": 1})),
            *({"input_ids": ids} for ids in ([], [[]], [1, [2]], [True], [1.0], ["1"], "1")),
            {"input_embeds": [1.0]}, {"input_embeds": [[]]},
            {"text": ["a"], "input_ids": [1]}, {"text": "a", "input_ids": [[1]]},
            {"text": ["a", "b"], "input_ids": [[1]]},
            one(sampling_params=1), one(sampling_params=[PARAMS]), with_n(one(), -1),
            *(batch(sampling_params=params) for params in (
                [PARAMS], [PARAMS, PARAMS, None], [{"n": 1}, {"n": 2}, {"n": 1}],
                [{"n": 2}, {"n": 2}, {}],
            )),
            one(lora_path=["x"]), one(return_logprob=[True]), batch(lora_path=["x"]),
            batch(lora_path=list("wxyz")), batch(rid=["x", "y"]),
        )),
        (one(sampling_params={"beam_width": 2}), Reason.BEAM),
        (one(sampling_params={"beam_width": "2"}), Reason.BEAM),
        (batch(sampling_params=[{}, {"beam_width": 2}, {}]), Reason.BEAM),
        *((batch(**{name: list("xyz")}), Reason.INSEPARABLE)
          for name in ("stop", "lora_id", "not_yet_invented")),
        (batch(image_data=[PICTURE] * 3), Reason.INSEPARABLE),
        (batch(image_data=["http://example.com/a.png"] * 3), Reason.MEDIA),
        (one(image_data="http://example.com/a.png"), Reason.MEDIA),
        (one(video_data=["/tmp/a.mp4"]), Reason.MEDIA),
        (one(audio_data={"url": "file:///tmp/a.wav"}), Reason.MEDIA),
    ],
)  # fmt: skip
def test_refusals(body: dict[str, Any], reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(DIALECT, body) is reason


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
    assert refusal(DIALECT, {**body, name: PICTURE}) is Reason.INSEPARABLE
    assert DIALECT.read({**body, name: None})


@each(("name", "values"), N1_LISTS.items(), ids=N1_LISTS)
def test_lists_that_need_n_1(name: str, values: list[Any]) -> None:
    """Lists that SGLang takes only with `n=1` are refused otherwise."""
    assert len(DIALECT.read(batch(**{name: values})).items) == 3
    assert refusal(DIALECT, with_n(batch(**{name: values}), 2)) is Reason.MALFORMED


@each(("name", "values"), LISTS.items(), ids=LISTS)
@each("n", [1, 2])
def test_lists_with_a_value_for_each_prompt(name: str, values: list[Any], n: int) -> None:
    """A list with a value for each prompt gives each prompt its own."""
    call = DIALECT.read(with_n(batch(**{name: values}), n))
    assert call.items == tuple(
        item(DIALECT, one(text=text, **{name: value}))
        for text, value in zip("abc", values, strict=True)
    )

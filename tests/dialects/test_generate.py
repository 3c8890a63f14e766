"""SGLang's native `/generate`."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.generate import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import item, minted, minter
from tests.tables import each

PAIRS = [
    pair
    for pair in [*corpus("generate-"), *corpus("auth-generate-right")]
    if pair["response"]["status"] == 200 and "stream" not in pair["name"]
]


PARAMS = {"temperature": 0.5, "max_new_tokens": 8}


PICTURE = "data:image/png;base64,AAAA"


def one(**fields: Any) -> dict[str, Any]:
    return {"text": "a", "sampling_params": PARAMS, **fields}


def batch(**fields: Any) -> dict[str, Any]:
    return {"text": ["a", "b", "c"], "sampling_params": PARAMS, **fields}


def with_n(body: dict[str, Any], n: int) -> dict[str, Any]:
    return {**body, "sampling_params": {**body["sampling_params"], "n": n}}


def native(text: str = "x", finish: Any = "stop", **meta: Any) -> dict[str, Any]:
    kind = {"type": finish} if isinstance(finish, str) else finish
    return {
        "text": text,
        "output_ids": [1],
        "meta_info": {"id": "up", "finish_reason": kind, "completion_tokens": 2, **meta},
    }


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


@each(("name", "values"), CONTENT.items(), ids=CONTENT)
def test_content(name: str, values: tuple[Any, Any]) -> None:
    """Requests that may be answered differently have different keys."""
    bodies = [one(**{name: value}) for value in values]
    if name == "text":
        bodies.append(one())
    else:
        bodies += [one(), one(**{name: None})]
    assert len({item(DIALECT, body) for body in bodies}) == len(bodies)


PARAMETERS: dict[str, tuple[Any, Any]] = {
    "max_new_tokens": (1, 2),
    "stop": ("a", ["a"]),
    "stop_token_ids": ([1], [2]),
    "stop_regex": ("a", ["a"]),
    "temperature": (0, 1),
    "top_p": (0.5, 1),
    "top_k": (-1, 1),
    "min_p": (0, 0.5),
    "frequency_penalty": (0, 1),
    "presence_penalty": (0, 1),
    "repetition_penalty": (1, 2),
    "min_new_tokens": (0, 1),
    "ignore_eos": (True, False),
    "json_schema": ("{}", '{"type":"object"}'),
    "regex": ("a", "b"),
    "ebnf": ("a", "b"),
    "structural_tag": ("a", "b"),
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
    "no_stop_trim": (True, False),
    "stream_interval": (1, 2),
    "logit_bias": ({"1": 1.0}, {"1": 2.0}),
    "custom_params": ({"a": 1}, {"a": 2}),
    "watermark": ({"a": 1}, {"a": 2}),
    "sampling_seed": (1, 2),
    "beam_width": (1, None),
    "not_yet_invented": ("a", "b"),
}


@each(("name", "values"), PARAMETERS.items(), ids=PARAMETERS)
def test_sampling_parameters(name: str, values: tuple[Any, Any]) -> None:
    """Requests that may be answered differently have different keys."""
    fills = [{name: value} for value in {json.dumps(v): v for v in (*values, None)}.values()]
    keys = {item(DIALECT, {"text": "a", "sampling_params": params}) for params in [*fills, {}]}
    assert len(keys) == len(fills) + 1


@each(
    "bodies",
    [
        [{"text": "1"}, {"input_ids": [1]}, {"input_embeds": [[1]]}],
        [{"text": "a"}, {"text": "a", "input_ids": [1]}, {"text": "b", "input_ids": [1]}],
        [{"input_ids": [1, 2]}, {"input_ids": [12]}, {"input_ids": [2, 1]}],
        [{"input_embeds": [[1]]}, {"input_embeds": [[1.0]]}],
        [
            {"text": "a"},
            {"text": "a", "sampling_params": None},
            {"text": "a", "sampling_params": {}},
        ],
    ],
)
def test_different_prompts(bodies: list[dict[str, Any]]) -> None:
    """Different prompts have different keys."""
    assert len({item(DIALECT, body) for body in bodies}) == len(bodies)


@each("n", [1, 2, 7])
def test_n_is_not_part_of_the_key(n: int) -> None:
    """The number of samples is not part of the key."""
    assert item(DIALECT, with_n(one(), n)) == item(DIALECT, one())


def test_prompts_of_a_batch_are_those_of_single_calls() -> None:
    """A prompt of a batch has the key that it has alone."""
    body = batch(
        sampling_params=[{"top_k": 1}, {"top_k": 2}, {"top_k": 3}],
        lora_path=["x", "y", "z"],
        return_logprob=[True, False, True],
        token_ids_logprob=[[1], [2], [3]],
        extra_key="shared",
        rid="r",
    )
    singles = [
        item(
            DIALECT,
            {
                "text": text,
                "sampling_params": {"top_k": i + 1},
                "lora_path": "xyz"[i],
                "return_logprob": i != 1,
                "token_ids_logprob": [i + 1],
                "extra_key": "shared",
            },
        )
        for i, text in enumerate("abc")
    ]
    assert list(DIALECT.read(body).items) == singles


def test_ids_that_all_prompts_share() -> None:
    """A list of ids that all prompts share is not dealt out to them."""
    call = DIALECT.read({"text": ["a", "b"], "token_ids_logprob": [1, 2]})
    assert call.items == tuple(
        item(DIALECT, {"text": text, "token_ids_logprob": [1, 2]}) for text in ("a", "b")
    )


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


@each(
    ("body", "shortfalls", "wanted", "order", "n"),
    [
        (with_n(one(), 5), (5,), with_n(one(), 5), (0,), 5),
        (with_n(one(), 5), (2,), with_n(one(), 2), (0,), 2),
        (with_n(one(), 5), (1,), with_n(one(), 1), (0,), 1),
        (batch(), (0, 1, 0), batch(text=["b"]), (1,), 1),
        (batch(), (1, 0, 1), batch(text=["a", "c"]), (0, 2), 1),
        (with_n(batch(), 2), (0, 2, 2), with_n(batch(text=["b", "c"]), 2), (1, 2), 2),
        (with_n(batch(), 3), (0, 2, 2), with_n(batch(text=["b", "c"]), 2), (1, 2), 2),
        (with_n(batch(), 3), (2, 0, 1), with_n(batch(text=["a", "a", "c"]), 1), (0, 0, 2), 1),
        (
            batch(sampling_params=[{"n": 2, "top_k": k} for k in (1, 2, 3)]),
            (0, 1, 2),
            {
                "text": ["b", "c", "c"],
                "sampling_params": [{"n": 1, "top_k": k} for k in (2, 3, 3)],
            },
            (1, 2, 2),
            1,
        ),
        (
            batch(**{**LISTS, **N1_LISTS}, bogus={"kept": [1, 2, 3]}, extra=1.5),
            (0, 0, 1),
            {
                **batch(text=["c"], bogus={"kept": [1, 2, 3]}, extra=1.5),
                **{name: [values[2]] for name, values in {**LISTS, **N1_LISTS}.items()},
            },
            (2,),
            1,
        ),
        (
            batch(token_ids_logprob=[5, 6, 7]),
            (0, 0, 1),
            batch(text=["c"], token_ids_logprob=[5, 6, 7]),
            (2,),
            1,
        ),
        (
            with_n(batch(text=["a", "b"], lora_path=["x", "y"]), 3),
            (1, 2),
            with_n(batch(text=["a", "b", "b"], lora_path=["x", "y", "y"]), 1),
            (0, 1, 1),
            1,
        ),
        (
            {"input_ids": [[1], [2]], "text": ["a", "b"]},
            (0, 1),
            {"input_ids": [[2]], "text": ["b"]},
            (1,),
            1,
        ),
    ],
)  # fmt: skip
def test_trim(
    body: dict[str, Any],
    shortfalls: tuple[int, ...],
    wanted: dict[str, Any],
    order: tuple[int, ...],
    n: int,
) -> None:
    """An upstream call asks for the samples that are short, and for no others."""
    before = copy.deepcopy(body)
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, shortfalls, minter())
    assert (sent.body, sent.order, sent.n, sent.rids) == (wanted, order, n, {})
    assert body == before
    assert sent.total == sum(shortfalls)


def test_trimmed_prompts_have_the_keys_of_their_items() -> None:
    """A prompt that is wanted has the key of its item."""
    call = DIALECT.read(with_n(batch(**LISTS), 3))
    sent = DIALECT.trim(call, (1, 0, 3), minter())
    again = DIALECT.read(sent.body)
    assert again.items == tuple(call.items[i] for i in sent.order)


@each(
    ("body", "shortfalls", "wanted", "rids"),
    [
        (one(rid="r"), (1,), minted(1), {"r": minted(1)}),
        (with_n(one(rid="r"), 3), (3,), minted(1), {}),
        (with_n(one(rid="r"), 3), (1,), minted(1), {}),
        (batch(rid="r"), (1, 0, 1), [minted(1), minted(2)], {"r_0": minted(1), "r_2": minted(2)}),
        (batch(rid=["x", "y", "z"]), (0, 1, 0), [minted(1)], {"y": minted(1)}),
        (with_n(batch(rid=["x", "y", "z"]), 2), (2, 0, 2), minted(1), {}),
        (with_n(batch(rid="r"), 2), (2, 1, 0), [minted(1), minted(2), minted(3)], {}),
        (one(rid=None), (1,), None, {}),
    ],
)
def test_trim_makes_rids_unique(
    body: dict[str, Any], shortfalls: tuple[int, ...], wanted: Any, rids: dict[str, str]
) -> None:
    """An upstream call has ids of its own, so that two calls can have the same `rid`."""
    before = copy.deepcopy(body)
    sent = DIALECT.trim(DIALECT.read(body), shortfalls, minter())
    assert sent.body["rid"] == wanted
    assert sent.rids == rids
    assert body == before


def split(body: dict[str, Any], shortfalls: tuple[int, ...], answer: Any):
    call = DIALECT.read(body)
    return DIALECT.split(call, DIALECT.trim(call, shortfalls, minter()), answer)


@each(
    ("body", "shortfalls", "answer", "items"),
    [
        (one(), (1,), native("0"), [0]),
        (with_n(one(), 2), (2,), [native("0"), native("1")], [0, 0]),
        (with_n(one(), 2), (1,), native("0"), [0]),
        ({"text": ["a"]}, (1,), [native("0")], [0]),
        (batch(), (0, 0, 1), [native("0")], [2]),
        (with_n(batch(), 2), (2, 0, 2), [native(str(k)) for k in range(4)], [0, 0, 2, 2]),
        (with_n(batch(), 2), (1, 0, 2), [native(str(k)) for k in range(3)], [0, 2, 2]),
    ],
)
def test_split(
    body: dict[str, Any], shortfalls: tuple[int, ...], answer: Any, items: list[int]
) -> None:
    """Each choice of an answer is a sample of its own prompt."""
    result = split(body, shortfalls, answer)
    assert result.refusal is None
    assert [g.item for g in result.generations] == items
    assert [json.loads(g.answer)["text"] for g in result.generations] == [
        str(k) for k in range(len(items))
    ]
    assert [g.tokens for g in result.generations] == [2] * len(items)


@each(
    ("body", "answer", "reason"),
    [
        (one(), [native()], Reason.UNREADABLE),
        (one(), None, Reason.UNREADABLE),
        (one(), "x", Reason.UNREADABLE),
        (one(), {}, Reason.UNREADABLE),
        (one(), {"meta_info": None}, Reason.UNREADABLE),
        (one(), {"error": {"message": "x"}}, Reason.ERROR),
        (with_n(one(), 2), native(), Reason.UNREADABLE),
        (with_n(one(), 2), [native()], Reason.UNREADABLE),
        (with_n(one(), 2), [native()] * 3, Reason.UNREADABLE),
        (with_n(one(), 2), {"error": "x"}, Reason.ERROR),
        (with_n(one(), 2), [native(), {"error": "x"}], Reason.ERROR),
        (with_n(one(), 2), [native(), None], Reason.UNREADABLE),
        (with_n(one(), 2), [], Reason.UNREADABLE),
        (batch(), native(), Reason.UNREADABLE),
        (batch(), [native()] * 2, Reason.UNREADABLE),
        ({"text": ["a"]}, native(), Reason.UNREADABLE),
    ],
)
def test_answers_that_are_not_what_was_asked_for(
    body: dict[str, Any], answer: Any, reason: Reason
) -> None:
    """An answer that is not what was asked for is refused."""
    call = DIALECT.read(body)
    with pytest.raises(Refused) as caught:
        split(body, (call.n,) * len(call.items), answer)
    assert caught.value.reason is reason


@each(
    ("bad", "refusal"),
    [
        (native(finish="abort"), Reason.ABORT),
        (native(finish={"type": "abort", "message": "m", "status_code": None}), Reason.ABORT),
        (native(finish=None), Reason.UNFINISHED),
        (native(finish={}), Reason.UNFINISHED),
        (native(weight_versions=[{"version": "a"}, {"version": "b"}]), Reason.MIXED_WEIGHTS),
        (native(weight_versions=[{"version": "a"}]), None),
        (native(finish={"type": "length", "length": 8}), None),
    ],
)
@each("place", [0, 1, 2])
def test_what_may_be_stored(bad: dict[str, Any], refusal: Reason | None, place: int) -> None:
    """One sample that may not be stored keeps its whole answer from being stored."""
    answer = [native(), native(), native()]
    answer[place] = bad
    result = split(batch(), (1, 1, 1), answer)
    assert result.refusal is refusal
    assert len(result.generations) == 3


@each(
    ("names", "versions"),
    [([], set()), (["a"], {"a"}), (["a", "a"], {"a"}), (["a", "b"], {"a", "b"})],
)
def test_versions(names: list[str], versions: set[str]) -> None:
    """The weights that an answer names are told."""
    answer = [*(native(weight_version=name) for name in names), native(), native(), native()][:3]
    assert split(batch(), (1, 1, 1), answer).versions == versions


def test_error_beside_an_answer() -> None:
    """An error beside an answer keeps it from being stored."""
    try:
        assert split(one(), (1,), {**native(), "error": {"message": "x"}}).refusal is Reason.ERROR
    except Refused as refused:
        assert refused.reason is Reason.ERROR


@each("tokens", [None, "3", 1.5, []])
def test_unknown_tokens(tokens: Any) -> None:
    """A sample whose tokens are not told counts as none."""
    assert split(one(), (1,), native(completion_tokens=tokens)).generations[0].tokens == 0


S = [b'{"text":"%d","meta_info":{"id":"u%d"},"novelty":[1]}' % (k, k) for k in range(6)]


def call_of(items: int, n: int, batched: bool, rids: tuple[str, ...] = ()) -> Call:
    return Call({}, tuple(b"%d" % i for i in range(items)), n, batched, rids)


@each(
    ("call", "samples", "answer"),
    [
        (call_of(1, 1, False), [S[:1]], S[0]),
        (call_of(1, 1, True), [S[:1]], b"[" + S[0] + b"]"),
        (call_of(1, 2, False), [S[:2]], b"[" + S[0] + b"," + S[1] + b"]"),
        (
            call_of(2, 2, True),
            [[S[3], S[1]], [S[0], S[2]]],
            b"[" + b",".join([S[3], S[1], S[0], S[2]]) + b"]",
        ),
        (call_of(1, 1, False, ("r",)), [S[:1]], S[0].replace(b"u0", b"r")),
        (
            call_of(2, 1, True, ("r_0", "r_1")),
            [[S[4]], [S[5]]],
            b"[" + S[4].replace(b"u4", b"r_0") + b"," + S[5].replace(b"u5", b"r_1") + b"]",
        ),
        (call_of(1, 1, False, ('"\\ü',)), [S[:1]], S[0].replace(b"u0", '\\"\\\\ü'.encode())),
    ],
)
def test_write(call: Call, samples: list[list[bytes]], answer: bytes) -> None:
    """A hit has the shape and order of SGLang's answer, and the client's own ids."""
    assert DIALECT.write(call, samples) == answer


@each("pair", PAIRS, ids=[pair["name"] for pair in PAIRS])
def test_recorded_answers_come_together_again(pair: dict[str, Any]) -> None:
    """A recorded answer is the same, byte for byte, after it was taken apart and written."""
    body, recorded = json.loads(pair["request"]["body"]), pair["response"]["body"]
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, (call.n,) * len(call.items), minter())
    result = DIALECT.split(call, sent, json.loads(recorded))
    assert result.refusal is None
    answers = [g.answer for g in result.generations]
    pools = [answers[i * call.n : i * call.n + call.n] for i in range(len(call.items))]
    assert DIALECT.write(call, pools) == recorded.encode()


@each("have", [1, 2, 3])
@each("want", [1, 2, 3])
def test_samples_of_one_call_serve_another(have: int, want: int) -> None:
    """Samples of one call answer another with fewer or more."""
    recorded = next(p for p in PAIRS if p["name"] == "generate-n3-hot")
    natives = json.loads(recorded["response"]["body"])
    result = split(with_n(one(), have), (have,), natives[:have] if have > 1 else natives[0])
    pool = [g.answer for g in result.generations]
    if want > have:
        call = DIALECT.read(with_n(one(), want))
        sent = DIALECT.trim(call, (want - have,), minter())
        rest = natives[have:want]
        answer = rest if want - have > 1 else rest[0]
        pool += [g.answer for g in DIALECT.split(call, sent, answer).generations]
    written = json.loads(DIALECT.write(DIALECT.read(with_n(one(), want)), [pool[:want]]))
    assert written == (natives[:want] if want > 1 else natives[0])

"""SGLang's native `/generate`."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.generate import DIALECT
from tests.dialects.bodies import item, minter
from tests.tables import each

PARAMS = {"temperature": 0.5, "max_new_tokens": 8}


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


def test_prompts_of_a_batch_are_those_of_single_calls() -> None:
    """A prompt of a batch has the key that it has alone."""
    lists = {
        "text": ["a", "b", "c"], "sampling_params": [{"top_k": k} for k in (1, 2, 3)],
        "lora_path": ["x", "y", "z"], "return_logprob": [True, False, True],
        "token_ids_logprob": [[1], [2], [3]],
    }  # fmt: skip
    assert list(DIALECT.read({**lists, "extra_key": "shared", "rid": "r"}).items) == [
        item(DIALECT, {"extra_key": "shared", **{name: v[i] for name, v in lists.items()}})
        for i in range(3)
    ]


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
        (batch(sampling_params=[{"n": 2, "top_k": k} for k in (1, 2, 3)]), (0, 1, 2),
         {"text": ["b", "c", "c"], "sampling_params": [{"n": 1, "top_k": k} for k in (2, 3, 3)]},
         (1, 2, 2), 1),
        (batch(**{**LISTS, **N1_LISTS}, bogus={"kept": [1, 2, 3]}, extra=1.5), (0, 0, 1),
         {**batch(text=["c"], bogus={"kept": [1, 2, 3]}, extra=1.5),
          **{name: [values[2]] for name, values in {**LISTS, **N1_LISTS}.items()}}, (2,), 1),
        (batch(token_ids_logprob=[5, 6, 7]), (0, 0, 1),
         batch(text=["c"], token_ids_logprob=[5, 6, 7]), (2,), 1),
        (with_n(batch(text=["a", "b"], lora_path=["x", "y"]), 3), (1, 2),
         with_n(batch(text=["a", "b", "b"], lora_path=["x", "y", "y"]), 1), (0, 1, 1), 1),
        ({"input_ids": [[1], [2]], "text": ["a", "b"]}, (0, 1),
         {"input_ids": [[2]], "text": ["b"]}, (1,), 1),
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
    assert DIALECT.read(sent.body).items == tuple(call.items[i] for i in order)


def split(body: dict[str, Any], shortfalls: tuple[int, ...], answer: Any):
    call = DIALECT.read(body)
    return DIALECT.split(call, DIALECT.trim(call, shortfalls, minter()), answer)


UNLIKE: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    # a body; answers that are no answers to it, and errors
    (one(), [[native()], None, "x", {}, {"meta_info": None}], [{"error": {"message": "x"}}]),
    (
        with_n(one(), 2), [native(), [native()], [native()] * 3, [native(), None], []],
        [{"error": "x"}, [native(), {"error": "x"}]],
    ),
    (batch(), [native(), [native()] * 2], []),
    ({"text": ["a"]}, [native()], []),
]  # fmt: skip


@each(("body", "answers", "errors"), UNLIKE)
def test_answers_that_are_not_what_was_asked_for(
    body: dict[str, Any], answers: list[Any], errors: list[Any]
) -> None:
    """An answer that is not what was asked for is refused."""
    call = DIALECT.read(body)
    for answer in (*answers, *errors):
        with pytest.raises(Refused) as caught:
            split(body, (call.n,) * len(call.items), answer)
        assert caught.value.reason is (Reason.ERROR if answer in errors else Reason.UNREADABLE)


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


@each("tokens", [None, "3", 1.5, []])
def test_unknown_tokens(tokens: Any) -> None:
    """A sample whose tokens are not told counts as none."""
    assert split(one(), (1,), native(completion_tokens=tokens)).generations[0].tokens == 0


A, B, C, D = (
    b'{"text":"%b","meta_info":{"id":"u%b"},"novelty":[1]}' % (k, k)
    for k in (b"a", b"b", b"c", b"d")
)


def call_of(items: int, n: int, batched: bool, rids: tuple[str, ...] = ()) -> Call:
    return Call({}, tuple(b"%d" % i for i in range(items)), n, batched, rids)


@each(
    ("call", "samples", "answer"),
    [
        (call_of(1, 1, False), [[A]], A),
        (call_of(1, 1, True), [[A]], b"[%b]" % A),
        (call_of(1, 2, False), [[A, B]], b"[%b,%b]" % (A, B)),
        (call_of(2, 2, True), [[D, B], [A, C]], b"[%b,%b,%b,%b]" % (D, B, A, C)),
        (call_of(1, 1, False, ("r",)), [[A]], A.replace(b"ua", b"r")),
        (call_of(2, 1, True, ("r_0", "r_1")), [[A], [B]],
         b"[%b,%b]" % (A.replace(b"ua", b"r_0"), B.replace(b"ub", b"r_1"))),
        (call_of(1, 1, False, ('"\\ü',)), [[A]], A.replace(b"ua", '\\"\\\\ü'.encode())),
    ],
)  # fmt: skip
def test_write(call: Call, samples: list[list[bytes]], answer: bytes) -> None:
    """A hit has the shape and order of SGLang's answer, and the client's own ids."""
    assert DIALECT.write(call, samples) == answer

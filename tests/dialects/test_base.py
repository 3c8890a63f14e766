"""The shape of a plugin: what holds of all dialects."""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson

from sglang_cached_addon.core.policy import MAX_SAMPLES, Reason, Refused
from sglang_cached_addon.dialects import (
    chat,
    completions,
    generate,
    installed,
    messages,
    responses,
)
from sglang_cached_addon.dialects.base import NULL, Dialect, Generating
from sglang_cached_addon.dialects.listing import Listing
from tests.conftest import corpus
from tests.dialects import test_chat as chats
from tests.dialects import test_completions as texts
from tests.dialects import test_generate as natives
from tests.dialects.bodies import item, minted, minter, refusal
from tests.tables import each

VALUES: tuple[Any, ...] = ("x", True, 1, 1.5, ["x"], {"x": "y"}, None)
OPENAI = {
    "rid": {str, list, NULL}, "stream": {bool}, "stream_options": {dict, NULL},
    "user": {str, NULL}, "session_id": {str, NULL}, "priority": {int, NULL},
    "custom_labels": {dict, NULL}, "routed_dp_rank": {int, NULL}, "data_parallel_rank": {int, NULL},
    "prompt_cache_key": {str, NULL}, "safety_identifier": {str, NULL},
}  # fmt: skip
GENERATE = {
    "rid": {str, list, NULL}, "stream": {bool}, "session_id": {str, NULL}, "log_metrics": {bool},
    "no_logs": {bool}, "background": {bool}, "priority": {int, NULL}, "routing_key": {str, NULL},
    "conversation_id": {str, NULL}, "custom_labels": {dict, NULL},
    "external_trace_header": {dict, NULL}, "received_time": {int, float, NULL},
    "routed_dp_rank": {int, NULL}, "data_parallel_rank": {int, NULL},
}  # fmt: skip
OURS: list[tuple[Dialect, dict[str, Any], dict[str, set[type]]]] = [
    # a body with one prompt, and the fields that may be left out of the key, with their types
    (chat.DIALECT, chats.chat(), OPENAI),
    (completions.DIALECT, texts.one(), OPENAI),
    (generate.DIALECT, natives.one(), GENERATE),
]


def with_n(body: dict[str, Any], n: Any) -> dict[str, Any]:
    """A body that asks for so many samples, in its API's own place."""
    if "text" not in body:
        return {**body, "n": n}
    return {**body, "sampling_params": {**body["sampling_params"], "n": n}}


def test_ours_are_dialects() -> None:
    """Each installed dialect has all that a dialect must have, and each that generates all that
    such a one must have."""
    own = {kind: [name for name in vars(kind) if name[0] != "_"] for kind in (Dialect, Generating)}
    assert "read" in own[Dialect] and "record" in own[Generating]
    generating = {dialect for dialect in installed().values() if not isinstance(dialect, Listing)}
    assert generating == {
        *(dialect for dialect, _, _ in OURS),
        messages.MESSAGES,
        responses.RESPONSES,
    }
    for dialect in installed().values():
        assert all(hasattr(dialect, name) for name in own[Dialect]), dialect.name
    for dialect in generating:
        assert all(hasattr(dialect, name) for name in own[Generating]), dialect.name


def test_transport() -> None:
    """A transport field is left out of the key with a value of its types, so that clients that name
    or schedule their requests in other ways share samples. Any other value stays in the key, or the
    call is refused, so that upstream can refuse it."""
    for dialect, body, transport in OURS:
        plain = item(dialect, body)
        assert {name: set(kinds) for name, kinds in dialect.transport.items()} == transport
        for name, kinds in transport.items():
            for value in VALUES:
                value = False if name == "stream" and value is True else value
                is_left_out = type(value) in kinds and not (name == "rid" and type(value) is list)
                try:
                    is_same = item(dialect, {**body, name: value}) == plain
                    assert is_same is is_left_out, (dialect.name, name, value)
                except Refused as refused:
                    assert not is_left_out, (dialect.name, name, value)
                    assert refused.reason is Reason.MALFORMED, (dialect.name, name, value)


def test_list_of_rids_is_transport() -> None:
    """A list of ids for a batch is left out of the key."""
    for dialect, body in ((completions.DIALECT, {"prompt": ["a", "b"]}),
                          (generate.DIALECT, {"text": ["a", "b"]})):  # fmt: skip
        named = {**body, "rid": ["x", "y"]}
        assert dialect.read(named).items == dialect.read(body).items, dialect.name


CONTENT = """model temperature top_p stop logit_bias custom_params watermark lora_path seed
    response_format min_tokens extra_key cache_salt custom_logit_processor modalities logprobs
    return_hidden_states return_routed_experts return_token_ids return_logprob images_config
    not_yet_invented"""
"""Fields of any of our APIs; which are left out of the key is what `test_transport` holds."""


def test_content() -> None:
    """Calls that may be answered differently have different keys: each field that is no transport
    field is part of it, and absent, null and other values are all different."""
    values = (None, "x", True, 1, {"x": 1})
    for dialect, body, _ in OURS:
        for name in CONTENT.split():
            bodies = [body, *({**body, name: value} for value in values)]
            assert len({item(dialect, each) for each in bodies}) == len(bodies), (
                dialect.name,
                name,
            )
    for name in ["max_new_tokens", "temperature", "stop", "sampling_seed", "not_yet_invented"]:
        params = [{}, *({name: value} for value in values)]
        keys = {item(generate.DIALECT, {"text": "a", "sampling_params": each}) for each in params}
        assert len(keys) == len(params), name
    beam = {item(generate.DIALECT, {"text": "a", "sampling_params": each}) for each in
            ({}, {"beam_width": None}, {"beam_width": 1})}  # fmt: skip
    assert len(beam) == 3


def test_n_is_not_part_of_the_key() -> None:
    """The number of samples is not part of the key."""
    for dialect, body, _ in OURS:
        assert {item(dialect, with_n(body, n)) for n in (1, 2, 7)} == {item(dialect, body)}


REFUSED: list[tuple[dict[str, Any], Reason]] = [
    ({"rid": ["x"]}, Reason.MALFORMED), ({"rid": 1}, Reason.MALFORMED),
    ({"stream": "true"}, Reason.MALFORMED),
    ({"stream": True, "return_hidden_states": True}, Reason.STREAM),
    ({"session_params": {"id": "s"}}, Reason.STATE), ({"bootstrap_room": 1}, Reason.DISAGGREGATION),
]  # fmt: skip


def test_refusals() -> None:
    """A call that is not understood in full is refused, with its reason."""
    for dialect, body, _ in OURS:
        for n in (0, None, True, 2.0, "2"):
            assert refusal(dialect, with_n(body, n)) is Reason.MALFORMED, (dialect.name, n)
        for fields, reason in REFUSED:
            assert refusal(dialect, {**body, **fields}) is reason, (dialect.name, fields)


def test_too_many() -> None:
    """A list of more prompts than may be named in time is refused."""
    for dialect, name in ((completions.DIALECT, "prompt"), (generate.DIALECT, "text")):
        assert refusal(dialect, {name: ["a"] * (MAX_SAMPLES + 1)}) is Reason.TOO_LARGE


RIDS: list[tuple[Dialect, dict[str, Any], tuple[int, ...], Any, dict[str, str]]] = [
    # a body, what is short; the ids that go upstream, in all and by the client's own
    *((dialect, {**body, "rid": "r"}, (1,), minted(1), {"r": minted(1)})
      for dialect, body, _ in OURS),
    *((dialect, with_n({**body, "rid": "r"}, 3), (short,), minted(1), {})
      for dialect, body, _ in OURS for short in (1, 3)),
    *(row for dialect, batch in ((completions.DIALECT, texts.batch),
                                 (generate.DIALECT, natives.batch)) for row in (
        (dialect, batch(rid="r"), (1, 0, 1), [minted(1), minted(2)],
         {"r_0": minted(1), "r_2": minted(2)}),
        (dialect, batch(rid=["x", "y", "z"]), (0, 1, 0), [minted(1)], {"y": minted(1)}),
        (dialect, with_n(batch(rid=["x", "y", "z"]), 2), (2, 0, 2), minted(1), {}),
        (dialect, with_n(batch(rid="r"), 2), (2, 1, 0), [minted(k) for k in (1, 2, 3)], {}),
    )),
    (generate.DIALECT, natives.one(rid=None), (1,), None, {}),
]  # fmt: skip


@each(("dialect", "body", "shortfalls", "wanted", "rids"), RIDS)
def test_rids_are_unique(
    dialect: Dialect,
    body: dict[str, Any],
    shortfalls: tuple[int, ...],
    wanted: Any,
    rids: dict[str, str],
) -> None:
    """An upstream call has ids of its own, so that two calls can have the same `rid`."""
    before = orjson.dumps(body)
    sent = dialect.trim(dialect.read(body), shortfalls, minter())
    assert (sent.body["rid"], sent.rids, orjson.dumps(body)) == (wanted, rids, before)


RECORDED = [
    pair
    for name in ("chat-", "completions-", "generate-", "auth-generate-right")
    for pair in corpus(name)
    if pair["response"]["status"] == 200 and "stream" not in pair["name"]
]


@each("pair", RECORDED, ids=[pair["name"] for pair in RECORDED])
def test_recorded_answers_come_together_again(pair: dict[str, Any]) -> None:
    """A recorded answer is the same after it was taken apart and written; of `/generate`, byte for
    byte. Only text prompts of a list share a usage that nothing tells apart."""
    body, recorded = json.loads(pair["request"]["body"]), pair["response"]["body"]
    dialect = installed()["POST", pair["request"]["path"]]
    call = dialect.read(body)
    sent = dialect.trim(call, (call.n,) * len(call.items), minter())
    split = dialect.split(call, sent, json.loads(recorded))
    is_shared = isinstance(body.get("prompt"), list) and isinstance(body["prompt"][0], str)
    assert split.refusal is (Reason.SHARED_USAGE if is_shared else None)
    assert split.versions == {"default"}
    answers = [generation.answer for generation in split.generations]
    pools = [answers[i * call.n : i * call.n + call.n] for i in range(len(call.items))]
    written = dialect.write(call, pools)
    if dialect is generate.DIALECT:
        assert written == recorded.encode()
        return
    assert json.loads(written) == json.loads(recorded)
    tokens = sum(generation.tokens for generation in split.generations)
    assert tokens == json.loads(recorded)["usage"]["completion_tokens"]


def test_samples_of_one_call_serve_another() -> None:
    """Samples of calls for fewer and for more come together to the answer of a call for any
    number."""

    def three_prompts(first: int, last: int) -> Any:
        letters = "".join("abcdefghi"[3 * i + first : 3 * i + last] for i in range(3))
        return texts.answer(letters, prompt_tokens=6)

    def one_prompt(first: int, last: int) -> Any:
        found = [natives.native(text) for text in "abc"[first:last]]
        return found if len(found) > 1 else found[0]

    for dialect, body, answer in (
        (chat.DIALECT, chats.chat(), lambda first, last: chats.answer(*"abc"[first:last])),
        (completions.DIALECT, texts.batch(), three_prompts),
        (generate.DIALECT, natives.one(), one_prompt),
    ):
        for have, want in itertools.product((1, 2, 3), repeat=2):
            call, known = dialect.read(with_n(body, want)), dialect.read(with_n(body, have))
            pools: list[list[bytes]] = [[] for _ in call.items]
            for asked, first, last in ((known, 0, have), (call, have, want)):
                if first < last:
                    sent = dialect.trim(asked, [last - first] * len(pools), minter())
                    for generation in dialect.split(asked, sent, answer(first, last)).generations:
                        pools[generation.item].append(generation.answer)
            written = json.loads(dialect.write(call, [pool[:want] for pool in pools]))
            assert written == answer(0, want), (dialect.name, have, want)

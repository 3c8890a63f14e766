"""What holds of all dialects of APIs that generate nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    classify,
    decisions,
    embeddings,
    encode,
    installed,
    rerank,
    score,
    systemone,
    tokenize,
)
from sglang_cached_addon.dialects.base import NULL
from sglang_cached_addon.dialects.counted import Counted
from sglang_cached_addon.dialects.listing import Listing
from sglang_cached_addon.dialects.messages import COUNT_TOKENS
from tests.conftest import corpus
from tests.dialects.bodies import counts, item, minter, refusal
from tests.tables import each

VALUES: tuple[Any, ...] = ("x", True, 1, 1.5, {"x": "y"}, None)
NOTHING: dict[str, set[type]] = {}
OPENAI = {"rid": {str, list, NULL}, "user": {str, NULL}, "priority": {int, NULL}}
NATIVE = {
    "rid": {str, list, NULL}, "log_metrics": {bool}, "background": {bool}, "priority": {int, NULL},
    "routing_key": {str, NULL}, "external_trace_header": {dict, NULL},
    "received_time": {int, float, NULL},
}  # fmt: skip
OURS: list[tuple[Listing, dict[str, Any], str, Any, dict[str, set[type]]]] = [
    # a body for one row, the field that has the rows, another row, and the fields that are
    # left out of the key, with their types
    (embeddings.DIALECT, {"model": "m", "input": "a"}, "input", "b", OPENAI),
    (classify.DIALECT, {"model": "m", "input": "a"}, "input", "b", OPENAI),
    (score.DIALECT, {"query": "q", "items": "a"}, "items", "b", NOTHING),
    (encode.DIALECT, {"text": "a"}, "text", "b", NATIVE),
    (tokenize.TOKENIZE, {"prompt": "a"}, "prompt", "b", NOTHING),
    (tokenize.DETOKENIZE, {"tokens": [1, 2]}, "tokens", [3], NOTHING),
]
OTHERS = (rerank.DIALECT, decisions.DIALECT, systemone.DIALECT)
"""Those that know no lone row, or no rows at all."""
DIALECTS = [dialect for dialect, *_ in OURS]
ROWS = each(
    ("dialect", "body", "field", "other", "transport"), OURS, ids=[d.name for d in DIALECTS]
)


def many(body: dict[str, Any], field: str, *others: Any) -> dict[str, Any]:
    """A body for a list: its own row, then others."""
    return {**body, field: [body[field], *others]}


@ROWS
def test_key(
    dialect: Listing, body: dict[str, Any], field: str, other: Any, transport: Any
) -> None:
    """A row has one key, alone and in each list; one that stands twice in a list is one item. A
    field that is not known to be harmless is part of the key, with each value another one."""
    alone, listed = dialect.read(body), dialect.read(many(body, field, other, body[field]))
    assert alone.is_pure and listed.is_pure and (alone.n, listed.n) == (1, 1)
    assert listed.items == (*alone.items, item(dialect, {**body, field: other}))
    assert (alone.batched, listed.batched) == (False, True)
    assert (alone.rows, listed.rows) == ((), (0, 1, 0))
    assert dialect.read(many(body, field, other)).rows == ()
    assert {name: set(kinds) for name, kinds in dialect.transport.items()} == transport
    for name in ("model", "dimensions", "lora_path", "instruct", "not_yet_invented", *transport):
        kept = [value for value in VALUES if type(value) not in transport.get(name, set())]
        for value in VALUES:
            is_left_out = type(value) in transport.get(name, set())
            try:
                is_same = item(dialect, {**body, name: value}) == alone.items[0]
            except Refused as refused:
                assert refused.reason is Reason.MALFORMED
                assert not is_left_out, (name, value)
                kept.remove(value)
                continue
            assert is_same is is_left_out, (name, value)
        assert len({item(dialect, {**body, name: value}) for value in kept}) == len(kept), name


@ROWS
def test_what_is_short_is_asked_for(
    dialect: Listing, body: dict[str, Any], field: str, other: Any, transport: Any
) -> None:
    """Of a list, those rows go upstream that are not stored, each once; but all as they stand there
    where nobody could tell what each of them uses."""
    call = dialect.read(many(body, field, other, body[field]))
    before = orjson.dumps(call.body)
    is_counted = isinstance(dialect, Counted)
    for server, is_once in ((Server(SGLANG), True), (Server("vllm"), not is_counted)):
        whole = dialect.trim(call, (1, 1), minter(), server)
        rows = [body[field], other] if is_once else call.body[field]
        assert (whole.body[field], whole.order) == (rows, (0, 1) if is_once else (0, 1, 0))
    for shortfalls, wanted in (((0, 1), [other]), ((1, 0), [body[field]])):
        sent = dialect.trim(call, shortfalls, minter())
        assert sent.body == {**call.body, field: wanted}
        assert sent.order == (shortfalls.index(1),) and sent.n == 1
    assert orjson.dumps(call.body) == before


@ROWS
def test_refusals(
    dialect: Listing, body: dict[str, Any], field: str, other: Any, transport: Any
) -> None:
    """A call that is not understood in full is refused, with its reason."""
    for value in (None, [], {}, 1, True, [None], [body[field], 1.5], [1.5]):
        assert refusal(dialect, {**body, field: value}) is Reason.MALFORMED, value
    listed = many(body, field, other)
    assert refusal(dialect, {**listed, "not_yet_invented": [1, 2]}) is Reason.INSEPARABLE
    assert refusal(dialect, {**body, "session_params": {"id": "s"}}) is Reason.STATE
    assert dialect.read({**body, "not_yet_invented": [1, 2]})


@ROWS
def test_unreadable_answers(
    dialect: Listing, body: dict[str, Any], field: str, other: Any, transport: Any
) -> None:
    """What is not the answer to what was asked for is not taken apart."""
    for asked in (body, many(body, field, other)):
        call = dialect.read(asked)
        sent = dialect.trim(call, [1] * len(call.items), minter())
        for answer in (None, 1, "x", {}, [], [{}], {"data": []}, {"data": [{}]}):
            try:
                dialect.split(call, sent, answer)
            except Refused as refused:
                assert refused.reason is Reason.UNREADABLE
            else:
                raise AssertionError(answer)
        try:
            dialect.split(call, sent, {"error": {"message": "no"}})
        except Refused as refused:
            assert refused.reason is Reason.ERROR


RECORDED = [
    pair
    for pair in corpus()
    if (pair["request"]["method"], pair["request"]["path"]) in installed()
    and isinstance(installed()[pair["request"]["method"], pair["request"]["path"]], Listing)
    and pair["response"]["status"] == 200
]


def written_once(answer: bytes | str, call: Call) -> Any:
    """An answer with the first of equal rows alone."""
    said = json.loads(answer)
    if isinstance(said, list):
        firsts = [call.rows.index(item) for item in range(len(call.items))]
        return [row for row in said if row["index"] in firsts]
    if "data" in said:
        said["data"] = [said["data"][call.rows.index(item)] for item in range(len(call.items))]
    return said


@each("pair", RECORDED, ids=[pair["name"] for pair in RECORDED])
def test_recorded_answers_come_together_again(pair: dict[str, Any]) -> None:
    """A recorded answer is the same, byte for byte, after it was taken apart and written."""
    request, recorded = pair["request"], pair["response"]["body"]
    dialect = installed()[request["method"], request["path"]]
    try:
        call = dialect.read(json.loads(request["body"]))
    except Refused:
        return  # it is passed on
    sent = dialect.trim(call, (1,) * len(call.items), minter(), Server(SGLANG))
    if sent.is_wider:
        return  # another call is sent
    if call.rows:  # it was sent as it is
        texts = tuple(dialect.inputs(call.body)) if isinstance(dialect, Counted) else ()
        sent = replace(sent, body=call.body, order=call.rows, texts=texts)
    sent = replace(sent, tokens=tuple(counts()[text] for text in sent.texts))
    split = dialect.split(call, sent, json.loads(recorded))
    assert split.refusal is None
    assert [generation.item for generation in split.generations] == list(range(len(call.items)))
    pools = [[generation.answer] for generation in split.generations]
    if call.rows:  # SGLang's numbers differ in the last bits, even of equal inputs in one list
        assert written_once(dialect.write(call, pools), call) == written_once(recorded, call)
    else:
        assert dialect.write(call, pools) == recorded.encode()


def test_installed() -> None:
    """All of ours are held to this."""
    found = {dialect for dialect in installed().values() if isinstance(dialect, Listing)}
    assert found == {*DIALECTS, *OTHERS, COUNT_TOKENS}

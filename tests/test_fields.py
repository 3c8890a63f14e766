"""Each field of each API is what `docs/fields.md` says."""

from __future__ import annotations

import random
from typing import Any

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import installed
from sglang_cached_addon.dialects.base import Dialect
from tests.dialects.bodies import item, refusal
from tests.fields import BASES, LISTS, PARAMS, PROMPTS, Json, Row, rows
from tests.tables import each

KINDS = {"key", "item", "out", "form", "count", "echo", "bypass"}
ROWS = list(rows())


def dialect(path: str) -> Dialect:
    return installed()["POST", path]


def with_n(row: Row, body: Json) -> Json:
    """The body for two samples."""
    if row.path == "/generate":
        return {**body, PARAMS: {**body[PARAMS], "n": 2}}
    return {**body, "n": 2}


def several(row: Row) -> list[Json]:
    """The calls for several samples that have the field: with `n`, and for a list."""
    found = []
    if row.path in ("/generate", "/v1/completions", "/v1/chat/completions") and row.name != "n":
        found.append(with_n(row, row.given()))
    if row.path in LISTS and row.name not in PROMPTS:
        found.append({**row.given(), **LISTS[row.path]})
    return found


def why(read: Dialect, body: Json) -> Reason | None:
    """Why a call is not looked up, if it is not."""
    try:
        read.read(body)
    except Refused as refused:
        return refused.reason
    return None


def test_the_page_has_all() -> None:
    """Each route with a dialect has its table, and each row says what a test knows."""
    assert {path for _, path in installed() if "?" not in path} == {row.path for row in ROWS}
    assert {row.kind for row in ROWS} == KINDS
    names = [(row.path, row.holder, row.name) for row in ROWS]
    assert len(set(names)) == len(names) > 250
    assert BASES.keys() == {row.path for row in ROWS}


@each("row", ROWS)
def test_fields(row: Row) -> None:
    """A field is in the key or not, or a bypass with its reason, as its row says."""
    read, given = dialect(row.path), row.given()
    if row.kind == "bypass":
        assert refusal(read, given) == row.reason
        given = {**row.body(), row.name: None} if not row.holder else row.body()
        assert why(read, given) is None
        return
    call = read.read(given)
    is_in_the_key = call.items != read.read(row.body()).items
    assert is_in_the_key is (row.kind in ("key", "item"))
    assert (call.n == 2) is (row.kind == "count")
    assert bool(call.rids) is (row.kind == "echo")


@each("row", ROWS)
def test_in_company(row: Row) -> None:
    """With `n`, in a list and in a stream, a field is what its row says."""
    read = dialect(row.path)
    if row.kind == "bypass":
        return
    for body in several(row):
        found = why(read, body)
        assert found == (Reason.INSEPARABLE if ", alone" in row.said else None), body
    if row.kind == "item" and row.path in LISTS and row.name not in PROMPTS:
        value = row.given()[row.name]
        assert why(read, {**row.body(), **LISTS[row.path], row.name: [value, value]}) is None
    if row.path in STREAMED and row.name != "stream":
        found = why(read, {**row.given(), "stream": True})
        assert found == (Reason.STREAM if ", no stream" in row.said else None)


STREAMED = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")


@each("path", BASES)
def test_what_is_not_known(path: str) -> None:
    """A field that nobody knows is part of the key, with each of its values; a list of it is not
    taken apart in a call for a list."""
    values: list[Any] = [None, True, False, 0, 1, "", "x", {}, {"a": 1}]
    if path not in ("/v1/score", "/v1/rerank", "/v1/decisions"):  # whose calls all are for a list
        values += [[], ["x"]]
    contents = {item(dialect(path), {**BASES[path], "not_yet_invented": v}) for v in values}
    assert len({*contents, item(dialect(path), BASES[path])}) == len(values) + 1
    if path in LISTS:
        body = {**BASES[path], **LISTS[path], "not_yet_invented": ["x", "y"]}
        assert refusal(dialect(path), body) is Reason.INSEPARABLE


@each("path", BASES)
def test_fields_together(path: str) -> None:
    """Whatever else a call has, and in whatever order, its key is one with that of another call if
    and only if both have the same fields that are in the key."""
    left_out = {*PROMPTS, *BASES[path], "stream", "n"}
    mine = [row for row in ROWS if row.path == path and row.kind != "bypass" and not row.holder]
    mine = [row for row in mine if row.name not in left_out]
    dice, contents = random.Random(1), dict[frozenset[str], set[bytes]]()
    for _ in range(150):
        drawn = [row for row in mine if dice.random() < 0.2]
        members = [*BASES[path].items(), *((row.name, row.given()[row.name]) for row in drawn)]
        dice.shuffle(members)
        in_the_key = frozenset(row.name for row in drawn if row.kind in ("key", "item"))
        contents.setdefault(in_the_key, set()).add(item(dialect(path), dict(members)))
    assert all(len(found) == 1 for found in contents.values())
    assert len({content for found in contents.values() for content in found}) == len(contents)

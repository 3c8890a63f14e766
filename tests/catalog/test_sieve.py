"""Which entries are wanted."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from sglang_cached_addon.catalog.entry import Entry, Models
from sglang_cached_addon.catalog.query import NotFound, Query
from sglang_cached_addon.catalog.sieve import Sieve, models_named, sieve
from sglang_cached_addon.core.places import Used
from tests.catalog.test_entry import GENERATE, KEY, sample

MODEL, OTHER = KEY[:8], b"o" * 8
MODELS = Models({MODEL: "m", OTHER: "m"}, MODEL)


def entry(text: str, *answers: str, key: bytes = KEY, at: float = 10.0) -> Entry:
    call = json.dumps({"text": text, "sampling_params": {"stop": "end"}}, ensure_ascii=False)
    samples = [sample(answer, at) for answer in answers or ("said",)]
    return Entry(key, "sglang-generate", samples, call.encode(), 9, GENERATE)


def test_models() -> None:
    """A model is named by what it is now, or by its name, which several may have."""
    theirs = OTHER + KEY[8:]
    for name, mine, others in (
        ("all", True, True), ("current", True, False), ("other", False, True), ("m", True, True),
    ):  # fmt: skip
        wanted = sieve(Query(model=name), MODELS, None)
        assert (wanted.may_be(KEY), wanted.may_be(theirs)) == (mine, others), name
    nobody = Models({})
    assert not sieve(Query(model="current"), nobody, None).may_be(KEY)
    assert sieve(Query(model="other"), nobody, None).may_be(KEY)
    assert models_named("m", MODELS) == {MODEL, OTHER}
    with pytest.raises(NotFound):
        sieve(Query(model="x"), MODELS, None)


def test_members() -> None:
    """An entry is wanted if it is of the API, of the time and of the run that are asked for."""
    for query, is_wanted in (
        ({}, True), ({"api": "sglang-generate"}, True), ({"api": "sglang"}, False),
        ({"since": 10.0}, True), ({"since": 10.1}, False), ({"until": 10.0}, True),
        ({"until": 9.9}, False),
    ):  # fmt: skip
        assert Sieve(Query(**query)).takes(entry("a")) is is_wanted, query
    for has in (True, False):
        assert Sieve(Query(), used=Used(lambda key, samples: has)).takes(entry("a")) is has  # noqa: B023


TEXTS = (
    ("one TWO", "One two", True), ("one TWO", "one  two", False), ("a", "end", False),
    ("say \"hi\"\n\\x", '"HI"\n\\X', True), ("\x1b[0m", "\x1b[0M", True), ("äÖß", "ÄöSS", False),
    ("äÖß", "ÄÖß", True), ("Привет", "пРИВЕТ", True), ("日本語", "本", True),
    ("ΟΔΟΣ", "οδος", True), ("οδος", "ΟΔΟΣ", True), ("x", "x" * 2, False), ("a.c", "abc", False),
    ("é", "É", True), ("😀 ok", "😀 OK", True),
)  # fmt: skip


def test_texts() -> None:
    """A text is found in the prompt and in every answer, whatever its case; the bytes of a line in
    which it is are hit."""
    for text, wanted, is_there in TEXTS:
        one = Sieve(Query(text=wanted))
        for found in (entry(text), entry("-", "-", text)):
            assert one.has_text(found) is is_there, (text, wanted)
            line = line_of(found)
            is_hit = next(one.hits(line), None) is not None
            assert is_hit or not is_there, (text, wanted)


def line_of(found: Entry) -> bytes:
    answers: list[Any] = [json.loads(each.answer) for each in found.samples]
    return orjson.dumps({"call": found.call, "answers": answers}) + b"\n"


def test_hits() -> None:
    """Hits come from the end on; without anything to look for, each line is one."""
    lines = b'{"dialect":"a"}\n{"dialect":"b"}\n{"dialect":"a"}\n'
    assert list(Sieve(Query()).hits(lines)) == [47, 31, 15]
    assert list(Sieve(Query(api="a")).hits(lines)) == [33, 1]
    assert list(Sieve(Query(text="DIA")).hits(lines)) == [34, 18, 2]
    assert not list(Sieve(Query(text="ä")).hits(lines))

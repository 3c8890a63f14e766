"""The lines of an archive: what is written is read again, and what is odd is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang_cached_addon.archive import record
from sglang_cached_addon.archive.record import Record, Told
from sglang_cached_addon.core import keys
from sglang_cached_addon.core.cache import Addition, Sample
from tests.tables import each

FINGERPRINT = "f" * 32
KEY = keys.prefix(FINGERPRINT) + b"k" * 24
ANSWER = b'{"text":"caf\xc3\xa9 \\u0000\\n","meta_info":{"e2e_latency":0.1,"n":-0.0,"x":1e-6}}'
POOL = Addition(
    KEY,
    "sglang-generate",
    b'{"sampling_params":{"temperature":0.0},"text":"one"}',
    [
        Sample(ANSWER, 1764211144.123456, 0.1, 3, b"[[3,null]]"),
        Sample(b"{}", 2.0, 0.0, 0, origin=b"o" * 16),
    ],
)
WHOLE = Record(
    POOL, FINGERPRINT, "tiny", ["one"], [Told("caf\u00e9", "stop", ["monday"]), Told("", None, [])]
)


def test_there_and_back() -> None:
    """Key, call and samples are read as they were, byte for byte; the rest is for people."""
    line = record.write(WHOLE)
    assert line.count(b"\n") == 1
    assert record.read(line) == Record(POOL, FINGERPRINT, "tiny")
    shown = json.loads(line)
    assert shown["model"] == {"name": "tiny", "fingerprint": FINGERPRINT}
    assert shown["call"] == {"sampling_params": {"temperature": 0.0}, "text": "one"}
    assert (
        shown["samples"][0].items()
        >= {"text": "caf\u00e9", "runs": ["monday"], "tokens": 3}.items()
    )
    assert "deltas" not in shown["samples"][1]
    assert "origin" not in shown["samples"][0]


def test_what_is_not_known() -> None:
    """A pool whose call and model nobody knows is one, too."""
    pool = Addition(b"k" * 32, "odd", b"", [Sample(b"{}", 2.0, 0.0, 0)])
    line = record.write(Record(pool, told=[Told("", None, [])]))
    assert json.loads(line)["model"] is None
    assert record.read(line) == Record(pool)


def test_state() -> None:
    """What a cache knew of its server is a line of its own."""
    assert record.read(record.write_state({"epochs": {}})) == {"epochs": {}}


def changed(**members: Any) -> bytes:
    """The line with other members; those that are None are left out."""
    value = json.loads(record.write(WHOLE)) | members
    return json.dumps({name: each for name, each in value.items() if each is not None}).encode()


def with_sample(**members: Any) -> bytes:
    """The line with other members in its only sample."""
    value = json.loads(record.write(WHOLE))["samples"][0] | members
    return changed(samples=[{name: each for name, each in value.items() if each is not None}])


DEEP: dict[str, Any] = {}
for _ in range(300):
    DEEP = {"a": DEEP}


@each(
    ("line", "why"),
    [
        (b"{", "no JSON: "),
        (b"", "no JSON: "),
        (b"[]", "no JSON object"),
        (b"{}", "'format' is None, and only 1 is known"),
        (changed(format=2), "'format' is 2, and only 1 is known"),
        (b'{"format":1,"state":[]}', "'state' is of the wrong type"),
        (changed(key=None), "there is no 'key'"),
        (changed(key="ab"), "'key' is not 64 hexadecimal digits"),
        (changed(key="x" * 64), "'key' is not 64 hexadecimal digits"),
        (changed(key="ab" * 32), "'key' is not one of the model that 'fingerprint' names"),
        (changed(api=7), "'api' is of the wrong type"),
        (changed(model="tiny"), "'model' is no object"),
        (changed(model={"name": "tiny"}), "there is no 'fingerprint'"),
        (changed(call=[]), "'call' is of the wrong type"),
        (changed(call=DEEP), "'call' is nested deeper than can be written"),
        (changed(samples=[]), "'samples' is empty"),
        (changed(samples=[7]), "'samples' has a member that is no object"),
        (with_sample(answer=None), "there is no 'answer'"),
        (with_sample(answer="text"), "'answer' is of the wrong type"),
        (with_sample(tokens=True), "'tokens' is of the wrong type"),
        (with_sample(tokens=1.5), "'tokens' is of the wrong type"),
        (with_sample(tokens=-1), "a sample has a number below 0"),
        (with_sample(stored_at="now"), "'stored_at' is of the wrong type"),
        (with_sample(seconds=-1), "a sample has a number below 0"),
        (with_sample(deltas={}), "'deltas' is of the wrong type"),
        (with_sample(origin="x"), "'origin' is not hexadecimal"),
        (with_sample(origin=7), "'origin' is not hexadecimal"),
    ],
)
def test_what_is_odd(line: bytes, why: str) -> None:
    """A line that is not one says why."""
    with pytest.raises(ValueError) as caught:
        record.read(line)
    assert str(caught.value).startswith(why)

"""Calls that are much alike have numbers in common."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.keys import canonical
from sglang_cached_addon.core.sketch import ENDS, LONGEST, sketch
from tests.tables import each

API = frozenset((next(iter(sketch("x", b"{}") & sketch("x", b'{"a":1}'))),))
"""What calls of one API have in common at least."""


def of(body: Any, api: str = "x") -> frozenset[int]:
    return sketch(api, json.dumps(body).encode())


WORDS = [f"word{i}" for i in range(400)]
TEXT = " ".join(WORDS)


def changed(at: int) -> str:
    return " ".join([*WORDS[:at], "other", *WORDS[at + 1 :]])


ALIKE: dict[str, tuple[Any, Any, int]] = {
    # two calls, and how many numbers they have in common beside that of the API, at least
    "another value": ({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 4}, 2),
    "a member more": ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": None}, 2),
    "an inner value": ({"p": {"a": 1, "b": 2}}, {"p": {"a": 1, "b": 3}}, 1),
    "the same text": ({"text": TEXT, "t": 0.5}, {"text": TEXT, "t": 0.7}, 3),
    "another end": ({"text": TEXT}, {"text": f"{TEXT} more"}, 2 * len(ENDS)),
    "another beginning": ({"text": TEXT}, {"text": f"More {TEXT}"}, len(ENDS)),
    "another middle": ({"text": TEXT}, {"text": changed(200)}, 2),
    "a word near the end": ({"text": TEXT}, {"text": changed(397)}, 2),
    "a message more": (
        {"messages": [{"content": "a"}, {"content": "b"}]},
        {"messages": [{"content": "a"}, {"content": "b"}, {"content": "c"}]},
        2,
    ),
    "a part of a message": (
        {"messages": [{"content": [{"text": TEXT}]}]},
        {"messages": [{"content": [{"text": changed(300)}]}]},
        2,
    ),
    "a short text": ({"text": "call 12345"}, {"text": "call 12346"}, 2),
    "a space behind a short text": ({"text": "what is it?"}, {"text": "what is it? "}, 2),
    "tokens": ({"input_ids": list(range(99))}, {"input_ids": [*range(98), 7]}, 2),
    "a language without spaces": ({"text": "日本語" * 40}, {"text": "日本語" * 40 + "文"}, 2),
    "no text at all": ({"text": "\ud800".encode("utf-8", "replace").decode()}, {"text": "?"}, 1),
    "too long to be read": ({"t": TEXT * 100 + "a"}, {"t": TEXT * 100 + "b"}, len(ENDS)),
}  # fmt: skip


@each("case", ALIKE)
def test_alike(case: str) -> None:
    """What two calls have in common is in both sketches, wherever they differ."""
    one, other, least = ALIKE[case]
    assert len((of(one) & of(other)) - API) >= least
    assert of(one) == of(one)
    assert of(one) != of(other) or case == "no text at all"


def test_not_alike() -> None:
    """Calls that have nothing in common have nothing but their API in common."""
    one = {"text": TEXT, "sampling_params": {"a": 1}, "n": [1, 2]}
    other = {"text": "nothing " * 99, "sampling_params": {"a": 2}, "n": [2, 1]}
    assert of(one) & of(other) == API
    assert not of(one) & of(one, "y")


@each("size", [1, 100, 10_000])
def test_bounded(size: int) -> None:
    """The size of a sketch has a bound, however large the call is."""
    message = {"role": "user", "content": TEXT[:200]}
    body = {"messages": [message | {"n": i} for i in range(size)], "tools": [{"a": i} for i in
            range(size)], "params": {str(i): i for i in range(size)}}  # fmt: skip
    assert len(of(body)) < 150
    assert len(sketch("x", canonical({"text": "a" * 2 * LONGEST}))) < 30

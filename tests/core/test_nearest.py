"""Which stored call is nearest, and what is told of it."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.nearest import (
    ABSENT,
    MAX_CALLS,
    MAX_SHOWN,
    MAX_TEXT,
    MAX_VALUE,
    Difference,
    differences,
    nearest,
    sentence,
)
from tests.tables import each

MODEL, OTHER = b"model-01", b"model-02"
KEY = MODEL + b"\1" * 24
NAME = KEY[:16].hex()
NEAR = f"The nearest stored call (key {NAME})"


def key(number: int, model: bytes = MODEL) -> bytes:
    return model + bytes([number]) * 24


def told(asked: Any, *stored: Any, with_values: bool = True) -> str:
    """What is said of stored calls, whose keys are numbered from 1 on."""
    calls = [(key(i), "chat", json.dumps(call).encode()) for i, call in enumerate(stored, 1)]
    raw = json.dumps(asked).encode()
    return sentence(nearest(raw, MODEL, calls), KEY, with_values=with_values)


LONG = "x" * 100

DIFFERENCES: dict[str, tuple[Any, Any, list[tuple[str, Any, Any]]]] = {
    "none": ({"a": 1}, {"a": 1}, []),
    "a value": ({"a": 1}, {"a": 2}, [("a", 1, 2)]),
    "not stored": ({"a": 1}, {}, [("a", 1, ABSENT)]),
    "not asked": ({}, {"a": 1}, [("a", ABSENT, 1)]),
    "null is not nothing": ({"a": None}, {}, [("a", None, ABSENT)]),
    "inside": ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3, "d": 2}}}, [("a.b.c", 1, 3)]),
    "in a list": ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, [("a[1].b", 2, 3)]),
    "a longer list": ({"a": [1, 2]}, {"a": [1]}, [("a[1]", 2, ABSENT)]),
    "a shorter list": ({"a": [1]}, {"a": [1, 2]}, [("a[1]", ABSENT, 2)]),
    "another kind": ({"a": [1]}, {"a": {"b": 1}}, [("a", [1], {"b": 1})]),
    "1 is not 1.0": ({"a": 1}, {"a": 1.0}, [("a", 1, 1.0)]),
    "1 is not true": ({"a": 1}, {"a": True}, [("a", 1, True)]),
    "several": ({"a": 1, "b": 2}, {"b": 3, "c": 4}, [("a", 1, ABSENT), ("b", 2, 3),
                                                     ("c", ABSENT, 4)]),
    "all of it": (1, 2, [("the whole", 1, 2)]),
}  # fmt: skip


@each("case", DIFFERENCES)
def test_differences(case: str) -> None:
    """Every difference between two calls is told."""
    asked, stored, expected = DIFFERENCES[case]
    found = [(one.place, one.asked, one.stored) for one in differences(asked, stored)]
    assert found == expected
    assert [type(one[1]) for one in found] == [type(one[1]) for one in expected]


SENTENCES: dict[str, tuple[Any, list[Any], str]] = {
    "nothing": ({"a": 1}, [], "Nothing is stored for this API."),
    "the same": ({"a": 1}, [{"a": 1}], f"{NEAR} is the same, but with too few samples."),
    "a value": ({"a": 1}, [{"a": 2}], f"{NEAR} differs in a (asked 1, stored 2)."),
    "absent": ({"a": 1}, [{}], f"{NEAR} differs in a (asked 1, stored nothing)."),
    "the first of equals": ({"a": 1}, [{"a": 2}, {"a": 3}],
                            f"{NEAR} differs in a (asked 1, stored 2)."),
    "fewest places": ({"a": 1, "b": 1}, [{"a": 1, "b": 2}, {"a": 2, "b": 2}],
                      f"{NEAR} differs in b (asked 1, stored 2)."),
    "longest text": ({"a": "one two three"}, [{"a": "one two four"}, {"a": "one six three"}],
                     f'{NEAR} differs in a (asked "one two three", stored "one two four").'),
    "long values": ({"a": LONG}, [{"a": 1}],
                    f'{NEAR} differs in a (asked "{LONG[: MAX_TEXT - 4]}..., stored 1).'),
    "many": ({str(i): 1 for i in range(9)}, [{str(i): 1 for i in range(2)}],
             f"{NEAR} differs in "
             + "; ".join(f"{i} (asked 1, stored nothing)" for i in range(2, 2 + MAX_SHOWN))
             + "; and 2 more."),
    "as many as are told": ({str(i): 1 for i in range(MAX_SHOWN)}, [{}],
                            f"{NEAR} differs in "
                            + "; ".join(f"{i} (asked 1, stored nothing)" for i in range(MAX_SHOWN))
                            + "."),
    "no ASCII": ({"a": "ä"}, [{"a": "ö"}], f'{NEAR} differs in a (asked "ä", stored "ö").'),
}  # fmt: skip


@each("case", SENTENCES)
def test_sentence(case: str) -> None:
    """The nearest stored call is told, and where it differs."""
    asked, stored, expected = SENTENCES[case]
    assert told(asked, *stored) == expected


def test_without_values() -> None:
    """Without values, only the places of differences are told."""
    said = told(
        {"messages": [{"content": "mine"}], "n": 1},
        {"messages": [{"content": "secret"}]},
        with_values=False,
    )
    assert said == f"{NEAR} differs in messages[0].content; n."


def test_nearest_wherever() -> None:
    """Of calls with as many differences, the one with the longest common text is nearest."""
    calls = [{"a": "far", "b": 2}, {"a": "neares", "b": 1}, {"a": "near", "b": 1}]
    for order in (calls, calls[::-1]):
        assert 'stored "neares"' in told({"a": "nearest", "b": 1}, *order[:2])
        assert "b (" not in told({"a": "nearest", "b": 1}, *order)


@each("order", [(1, -1), (-1, 1)])
def test_other_models(order: tuple[int, int]) -> None:
    """An equal call of this model is nearer than one of another, which is told of if alone."""
    same = [(key(1, OTHER), "chat", b'{"a":1}'), (KEY, "chat", b'{"a":1}')][:: order[0]]
    said = sentence(nearest(b'{"a":1}', MODEL, same), KEY, with_values=True)
    assert said == f"{NEAR} is the same, but with too few samples."
    foreign = nearest(b'{"a":1}', MODEL, [(key(1, OTHER), "chat", b'{"a":1}')])
    said = sentence(foreign, KEY, with_values=True)
    assert said.endswith("is the same, but of another model or credential.")
    assert key(1, OTHER)[:16].hex() in said
    assert [near.is_same_model for near in foreign] == [False]
    other = nearest(b'{"a":1}', MODEL, [(key(2), "chat", b'{"a":1}')])  # of another credential
    assert [near.is_same_model for near in other] == [True]
    said = sentence(other, KEY, with_values=True)
    assert said.endswith("is the same, but of another model or credential.")


def test_the_least_behind() -> None:
    """Of calls whose texts begin alike, the one with the least before a common end is nearest."""
    calls = [{"a": "one two"}, {"a": "one three"}, {"a": "one t"}]
    for order in (calls, calls[::-1]):
        assert 'stored "one t"' in told({"a": "one "}, *order)
        assert 'stored "one three"' in told({"a": "not one three"}, *order)


def test_several() -> None:
    """So many of the nearest calls are told, the nearest first, however many there are."""
    calls = [(key(i), "chat", b'{"a":%d,"b":%d}' % (i, i % 2)) for i in range(20)]
    found = nearest(b'{"a":3,"b":0}', MODEL, calls)
    assert [len(near.differences) for near in found] == [1] * MAX_CALLS
    assert found[0].key == key(0)


TEXT = "".join(map(str, range(2 * MAX_VALUE)))

SHOWN: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "values": (1, [2], {"asked": 1, "stored": [2]}),
    "null": (None, 1, {"asked": None, "stored": 1}),
    "not asked": (ABSENT, 1, {"stored": 1}),
    "not stored": (1, ABSENT, {"asked": 1}),
    "long": (1, [0] * MAX_VALUE, {"asked": 1, "stored": f"[{'0,' * (MAX_VALUE // 2)}"[:MAX_VALUE]
                                  + "..."}),
    "long texts": (TEXT, TEXT[: 2 * MAX_VALUE],
                   {"asked": f"...{TEXT[2 * MAX_VALUE - MAX_VALUE // 4 :][:MAX_VALUE]}...",
                    "stored": f"...{TEXT[2 * MAX_VALUE - MAX_VALUE // 4 : 2 * MAX_VALUE]}"}),
}  # fmt: skip


@each("case", SHOWN)
def test_values_as_json(case: str) -> None:
    """What is absent has no member, and long values are cut to where they differ."""
    asked, stored, expected = SHOWN[case]
    one = Difference("a", asked, stored)
    assert one.as_json() == {"at": "a", **expected}

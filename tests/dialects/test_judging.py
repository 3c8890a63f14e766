"""Judging upstream's answers."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects import judging
from tests.tables import each


@each(
    ("meta", "mixed"),
    [
        ({"weight_versions": [{}, {}]}, True),
        ({"weight_versions": [{}]}, False),
        ({"weight_versions": []}, False),
        ({"weight_versions": None}, False),
        ({}, False),
        (None, False),
        ([], False),
        ("weight_versions", False),
    ],
)
def test_weights(meta: Any, mixed: bool) -> None:
    """Half of a stored answer would be another model's."""
    assert judging.weights_refusal(meta) is (Reason.MIXED_WEIGHTS if mixed else None)


@each(
    ("metas", "versions"),
    [
        ([], set()),
        ([{"weight_version": "a"}], {"a"}),
        ([{"weight_version": "a"}, {"weight_version": "a"}], {"a"}),
        ([{"weight_version": "a"}, {"weight_version": "b"}], {"a", "b"}),
        ([{"weight_version": "a"}, {}, None, [], "weight_version"], {"a"}),
        ([{"weight_version": ""}], {""}),
        ([{"weight_version": value} for value in (None, 1, True, ["a"], {})], set()),
        ([{"weight_versions": [{"version": "a"}]}], set()),
    ],
)
def test_weight_versions(metas: list[Any], versions: set[str]) -> None:
    """An answer of other weights would be stored, or one that does not tell not be."""
    assert judging.weight_versions(metas) == versions


@each(
    ("kind", "reason"),
    [
        ("stop", None),
        ("length", None),
        ("tool_calls", None),
        ("abort", Reason.ABORT),
        (None, Reason.UNFINISHED),
        ({"type": "stop"}, Reason.UNFINISHED),
        (1, Reason.UNFINISHED),
    ],
)
def test_finish(kind: Any, reason: Reason | None) -> None:
    """A cut answer would be repeated for ever."""
    assert judging.finish_refusal(kind) is reason


def test_dump_is_compact() -> None:
    """Stored answers would not be byte for byte those of SGLang."""
    assert judging.dump({"a": [1, "ü"], "b": None}) == '{"a":[1,"ü"],"b":null}'.encode()

"""Judging upstream's answers."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects import judging
from tests.tables import each


@each(
    ("meta", "mixed"),
    [
        ({"weight_versions": [{}, {}]}, True), ({"weight_versions": [{}]}, False),
        ({"weight_versions": []}, False), ({"weight_versions": None}, False), ({}, False),
        (None, False), ([], False), ("weight_versions", False),
    ],
)  # fmt: skip
def test_weights(meta: Any, mixed: bool) -> None:
    """An answer of two sets of weights is not stored."""
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
)  # fmt: skip
def test_weight_versions(metas: list[Any], versions: set[str]) -> None:
    """The weights that members name are told; others name none."""
    assert judging.weight_versions(metas) == versions


@each(
    ("kind", "reason"),
    [
        ("stop", None), ("length", None), ("tool_calls", None), ("abort", Reason.ABORT),
        (None, Reason.UNFINISHED), ({"type": "stop"}, Reason.UNFINISHED), (1, Reason.UNFINISHED),
    ],
)  # fmt: skip
def test_finish(kind: Any, reason: Reason | None) -> None:
    """A sample that did not end by itself is not stored."""
    assert judging.finish_refusal(kind) is reason


def test_dump_is_compact() -> None:
    """JSON is written compactly, as SGLang writes it."""
    assert judging.dump({"a": [1, "ü"], "b": None}) == '{"a":[1,"ü"],"b":null}'.encode()

"""Which stored greedy answer is also the answer to another call of its family."""

from __future__ import annotations

from math import inf
from typing import Any

from sglang_cached_addon.core import families
from sglang_cached_addon.core.families import Ended, Reuse, Variant, fit, limit_of
from tests.tables import each

NEW = Reuse(is_possible=True, room=100, stops_at_limit=True)
OLD, PARSED = Reuse(is_possible=True, room=100), Reuse(True, 100, True, True)
INFO = {"model_path": "m", "architectures": ["Qwen2ForCausalLM"], "preferred_sampling_params": None}
SERVER = {"version": "0.5.23", "max_req_input_len": 100, "frontend": "python"}


def variant(limit: float, scores: bytes = b"", **others: Any) -> Variant:
    return Variant(limit, {"limit": str(limit), "scores": scores.decode()}, scores, **others)


STOPPED, FULL = Ended(10, 5, True), Ended(10, 5, False)


@each(
    ("limit", "has", "ended", "count"),
    [
        # one that has stopped serves each limit that is not below it, and a cut one that is
        (20, 30, STOPPED, 10), (11, 30, STOPPED, 10), (10, 30, STOPPED, 10),
        (9, 30, STOPPED, 9), (1, 30, STOPPED, 1),
        # one that has not serves no higher limit
        (11, 10, FULL, None), (inf, 10, FULL, None), (10, 30, FULL, 10), (9, 10, FULL, 9),
        # upstream might refuse a limit above the one that it has accepted
        (95, 30, STOPPED, 10), (96, 30, STOPPED, None), (96, 96, STOPPED, 10),
        (inf, 30, STOPPED, 10), (96, inf, STOPPED, None), (95, inf, STOPPED, 10),
        # the same limit, with other log-probabilities
        (10, 10, STOPPED, 10), (10, 10, FULL, 10), (inf, inf, FULL, 10),
        # nothing was generated
        (10, 20, Ended(0, 5, True), None),
    ],
)  # fmt: skip
def test_limits(limit: float, has: float, ended: Ended, count: int | None) -> None:
    """A limit is served by as much of an answer as upstream gives for it."""
    assert fit(variant(limit), variant(has), ended, NEW) == count


@each(
    ("wanted", "server", "ended", "count"),
    [
        (variant(10), OLD, STOPPED, None),
        (variant(10), OLD, FULL, 10),
        (variant(11), OLD, STOPPED, 10),
        (variant(10, has_grammar=True), NEW, STOPPED, None),
        (variant(11, has_grammar=True), NEW, STOPPED, 10),
        (variant(5, has_grammar=True), NEW, STOPPED, None),
        (variant(5, is_chat=True), NEW, STOPPED, 5),
        (variant(5, is_chat=True), PARSED, STOPPED, None),
        (variant(11, is_chat=True), PARSED, STOPPED, 10),
        (variant(5), PARSED, STOPPED, 5),
        (variant(5, least=6), NEW, STOPPED, None),
        (variant(5, least=5), NEW, STOPPED, 5),
    ],
)
def test_doubts(wanted: Variant, server: Reuse, ended: Ended, count: int | None) -> None:
    """Where nobody knows what upstream makes of a limit, there is nothing."""
    assert fit(wanted, variant(30), ended, server) == count


@each(
    ("one", "other", "serves"),
    [
        (variant(5, b"s"), variant(5), True),
        (variant(5), variant(5, b"s"), False),
        (variant(5, b"s"), variant(6, b"s"), True),
        (variant(5, b"s"), variant(6, b"t"), False),
        (variant(5), variant(6), True),
        (variant(5), variant(5), False),
    ],
)
def test_scores(one: Variant, other: Variant, serves: bool) -> None:
    """An answer with log-probabilities serves a call without, and never the reverse."""
    assert one.may_serve(other) is serves


@each(
    ("server", "info", "reuse"),
    [
        (SERVER, INFO, NEW),
        ({**SERVER, "version": "0.5.22"}, INFO, OLD),
        ({**SERVER, "version": "main"}, INFO, OLD),
        ({**SERVER, "enable_deterministic_inference": False}, INFO, NEW),
        ({**SERVER, "speculative_algorithm": "EAGLE"}, INFO, NEW),
        ({**SERVER, "speculative_algorithm": "EAGLE", "version": "0.5.22"}, INFO, families.NONE),
        ({**SERVER, "speculative_accept_threshold_acc": 0.9}, INFO, families.NONE),
        ({**SERVER, "speculative_accept_threshold_single": 1.0}, INFO, NEW),
        ({**SERVER, "dllm_algorithm": "LowConfidence"}, INFO, families.NONE),
        ({**SERVER, "enable_watermark": True}, INFO, families.NONE),
        ({**SERVER, "frontend": "rust"}, INFO, families.NONE),
        (SERVER, {**INFO, "preferred_sampling_params": {"max_new_tokens": 9}}, families.NONE),
        (SERVER, {**INFO, "reasoning_parser": "qwen3"}, PARSED),
        ({**SERVER, "tool_call_parser": "qwen25"}, INFO, PARSED),
        (SERVER, {**INFO, "architectures": ["GptOssForCausalLM"]}, PARSED),
        ({"version": "0.5.23"}, {}, Reuse(True, 0, False, True)),
        (None, INFO, families.NONE),
        (SERVER, None, families.NONE),
    ],
)
def test_what_a_server_tells(server: Any, info: Any, reuse: Reuse) -> None:
    """Nothing is reused where greedy answers depend on more, or the server does not say."""
    version = (server or {}).get("version", "")
    assert families.reuse(families.told(server, info), version) == reuse


@each(("value", "limit"), [
    (1, 1), (128, 128), (0, None), (-1, None), (True, None), (1.0, None), ("1", None),
    (None, None), (1 << 40, None),
])  # fmt: skip
def test_limit_of(value: Any, limit: int | None) -> None:
    assert limit_of(value) == limit


def test_names() -> None:
    """The order of fields says nothing."""
    names = [Variant(1, fields, b"").name for fields in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    assert names[0] == names[1] == b'{"a":1,"b":2}'

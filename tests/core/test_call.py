"""The values that a call, its upstream call and its answer are."""

from __future__ import annotations

from sglang_cached_addon.core.call import (
    Call,
    Generation,
    Script,
    Split,
    UpstreamCall,
    take_out,
    with_deltas,
    without_skipped,
)
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.neighbours import VLLM


def test_totals() -> None:
    """A call wants `n` of each item, and an upstream call asks for `n` of each prompt that it
    sends."""
    assert Call({}, (b"a", b"b"), n=3, batched=True).total == 6
    assert UpstreamCall({}, order=(0, 0, 1), n=2).total == 6


def test_choices_in_turn() -> None:
    """The choices of a stream come side by side, until the last has ended."""
    assert Script(([b"a1", b"a2", b"a3"], [b"b1"])).in_turn() == [b"a1", b"b1", b"a2", b"a3"]


def test_skipped() -> None:
    """Where upstream is asked again for what is there already, that is left out of what came."""
    sent = UpstreamCall({}, order=(0, 1), n=3, skip=(2, 0))
    came = Split(tuple(Generation(k // 3, b"%d" % k, 1) for k in range(6)))
    assert [g.answer for g in without_skipped(came, sent).generations] == [b"2", b"3", b"4", b"5"]
    assert without_skipped(came, UpstreamCall({}, order=(0, 1), n=3)) is came


def test_deltas() -> None:
    """Each sample keeps where the events of its own stream began and ended."""
    came = Split((Generation(0, b"a", 1), Generation(1, b"b", 1)))
    assert [g.deltas for g in with_deltas(came, [b"1", b"2"]).generations] == [b"1", b"2"]


def test_take_out() -> None:
    """A client does not see the members that only the proxy has asked for."""
    for server, shown in ((UNKNOWN, {"text": "a"}), (Server(VLLM), {"text": "a", "ids": None})):
        members = {"text": "a", "ids": [1]}
        take_out(UpstreamCall({}, (0,), 1, server=server, added=("ids",)), members)
        assert members == shown

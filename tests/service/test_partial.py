"""Calls for a part of an answer: when upstream is no longer asked for one."""

from __future__ import annotations

from sglang_cached_addon.service.partial import PAUSE_SECONDS, STRIKES, PartialCalls


def test_strikes() -> None:
    """What upstream misunderstands several times in a row is left for a while, and then tried
    again; dialects are apart."""
    calls = PartialCalls()
    for strike in range(STRIKES):
        assert not calls.are_pointless("chat", 10.0)
        calls.failed("chat", float(strike))
    last = STRIKES - 1.0
    assert calls.are_pointless("chat", last + PAUSE_SECONDS)
    assert not calls.are_pointless("generate", last)
    assert not calls.are_pointless("chat", last + PAUSE_SECONDS + 0.1)
    assert not calls.are_pointless("chat", last)


def test_success() -> None:
    """An answer that is understood takes back what failed before it."""
    calls = PartialCalls()
    for _ in range(STRIKES):
        calls.failed("chat", 1.0)
        calls.worked("chat")
    assert not calls.are_pointless("chat", 1.0)

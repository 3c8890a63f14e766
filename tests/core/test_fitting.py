"""What servers make of calls."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cached_addon.core.call import Call, StreamOptions
from sglang_cached_addon.core.fitting import fitted, is_fixed
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.neighbours import OLLAMA, SGLANG
from sglang_cached_addon.core.policy import MAX_SAMPLES, Reason, Refused
from tests.tables import each

REAL = Server(SGLANG, keeps_answers=False)


def call(*items: bytes, n: int = 1, **more: Any) -> Call:
    return Call({"stream": "stream" in more}, items or (b"{}",), n, len(items) > 1, **more)


@each(
    ("asked", "server", "reason"),
    [
        (call(n=MAX_SAMPLES + 1), REAL, Reason.TOO_LARGE),
        (call(b"a", b"a", is_seeded=True), UNKNOWN, Reason.INSEPARABLE),
        (call(n=2), Server(OLLAMA), Reason.ONE_CHOICE),
        (call(may_be_kept=True), UNKNOWN, Reason.STATE),
        (call(may_be_kept=True), Server(SGLANG), Reason.STATE),
    ],
)  # fmt: skip
def test_refused(asked: Call, server: Server, reason: Reason) -> None:
    """What a server may answer otherwise than in samples of each prompt is not looked up."""
    with pytest.raises(Refused) as caught:
        fitted(asked, server)
    assert caught.value.reason is reason


@each(
    ("asked", "server"),
    [
        (call(n=MAX_SAMPLES), UNKNOWN), (call(b"a", b"a", is_seeded=True), REAL),
        (call(b"a", b"b", is_seeded=True), UNKNOWN), (call(), Server(OLLAMA)),
        (call(may_be_kept=True), REAL), (call(), UNKNOWN),
        (call(stream=StreamOptions()), UNKNOWN),
    ],
)  # fmt: skip
def test_as_it_is(asked: Call, server: Server) -> None:
    """Other calls are looked up as they are."""
    assert fitted(asked, server) == asked
    assert is_fixed(asked, server) is (asked.is_seeded and server is UNKNOWN)


def test_streams() -> None:
    """Where streams tell their usage unasked, or are kept apart, a stream is asked for so."""
    stream = call(stream=StreamOptions())
    found = fitted(stream, Server(SGLANG, streams_usage=True))
    assert found.stream == StreamOptions(usage=True) and found.items == stream.items
    found = fitted(stream, Server(streams_apart=True))
    assert found.stream == StreamOptions(usage=True) and found.is_apart
    assert fitted(call(), Server(streams_apart=True)) == call()

"""Answers that come in pieces: how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.asking import Arrived, Streamed
from sglang_cached_addon.service.findings import Landed


def test_close() -> None:
    """What an answer holds is let go of once, and its end is counted once."""
    log: list[str] = []
    exits = ExitStack()
    exits.callback(log.append, "let go")

    def end(is_complete: bool) -> Outcome:
        log.append(f"complete: {is_complete}")
        return Outcome(Kind.MISS, reason=None if is_complete else Reason.CUT)

    async def pieces() -> AsyncIterator[list[bytes]]:
        yield [b"x"]

    streamed = Streamed((), pieces(), Outcome(Kind.MISS, is_open=True), end, exits)
    streamed.close(True)
    streamed.close()
    assert log == ["let go", "complete: True"]
    assert streamed.outcome == Outcome(Kind.MISS)


def test_reply() -> None:
    """A client is given what has landed, under upstream's headers."""
    outcome = Outcome(Kind.MISS, status=201)
    reply = Arrived(((b"a", b"b"),), Landed(201, b"x")).reply(outcome)
    assert (reply.status, reply.headers, reply.body) == (201, ((b"a", b"b"),), b"x")
    assert reply.outcome is outcome

"""Answers that come in pieces: how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack

from sglang_cached_addon.core.call_head import CallHeads
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.routing import KeyHeaders
from sglang_cached_addon.service.asking import Arrived, Ask, Streamed
from sglang_cached_addon.service.findings import Landed
from tests.tables import each


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


@each(
    ("fields", "is_shown"),
    [
        ([(b"authorization", b"Bearer a"), (b"X-Model", b"m")], True),
        ([(b"Authorization", b"Bearer a"), (b"x-model", b"m"), (b"X-Other", b"1")], True),
        ([(b"Authorization", b"Bearer b"), (b"X-Model", b"m")], False),
        ([(b"X-Model", b"m")], False),
        ([(b"Authorization", b"Bearer a"), (b"X-Model", b"n")], False),
        ([(b"Authorization", b"Bearer a")], False),
        ([(b"Authorization", b"Bearer a"), (b"X-Model", b"m"), (b"X-Api-Key", b"k")], False),
        ([(b"Authorization", b"Bearer a"), (b"X-Model", b"m"), (b"Anthropic-Beta", b"b")], False),
    ],
)
def test_who_is_shown(fields: list[tuple[bytes, bytes]], is_shown: bool) -> None:
    """Upstream is asked for a client where it is shown that client's credential, routing and
    version of an API, and no others."""
    heads = CallHeads(KeyHeaders(["x-model"]))
    own = {b"authorization": b"Bearer a", b"x-model": b"m"}
    ask = Ask(heads.read("POST", "/generate", own), b"", tuple(own.items()))
    ask.credential_headers = heads.credential_headers(own)
    ask.routing_headers = heads.routing_headers(own)
    assert ask.is_shown(fields, heads) is is_shown

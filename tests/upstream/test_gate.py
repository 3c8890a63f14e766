"""Whom upstream accepts, and how it is asked about that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from sglang_cached_addon.core.admission import Probe
from sglang_cached_addon.upstream.gate import Gate
from sglang_cached_addon.wire.client import Client
from tests.ports import dead_url
from tests.tables import each
from tests.upstream.scripted import (
    PROBE,
    Clock,
    Script,
    asker,
    bounded,
    clock,
    credential_headers,
    serving,
    settled,
)

__all__ = ["clock"]

VERSION = (b"X-Version", b"1")
"""What each probe of these tests is sent with."""


@asynccontextmanager
async def gate(url: str, probes: Sequence[bytes] = (PROBE,)) -> AsyncIterator[Gate]:
    made = Gate(Client(url), lambda asker: [Probe(body, (VERSION,)) for body in probes])
    try:
        yield made
    finally:
        made.close()
        await settled()


@bounded
async def test_milder_probes_first() -> None:
    """A probe that tells nothing is followed by the next; one that does is the last. Each is sent
    with the header fields that are its own."""

    async def asked(script: Script, probes: Sequence[bytes]) -> tuple[list[bytes], bool]:
        async with gate(script.url, probes) as made:
            await made.tries(asker("key"), credential_headers("key"))
            admits = made.admission.admits(asker("key"), 0.0)
        bodies = [one.body for one in script.asked]
        assert all(one.headers["x-version"] == "1" for one in script.asked)
        script.asked.clear()
        return bodies, admits

    async with serving() as script:
        odd = b'{"odd":true}'
        answered = asyncio.ensure_future(script.calls.get())
        answered.add_done_callback(lambda call: call.result().answer(422))
        assert await asked(script, (odd, PROBE)) == ([odd, PROBE], True)
        assert await asked(script, (PROBE, odd)) == ([PROBE], True)
        assert await asked(script, ()) == ([], False)
        script.keys = set()
        assert await asked(script, (PROBE, odd)) == ([PROBE], False)


@bounded
async def test_not_again_at_once(clock: Clock) -> None:
    """Who was not accepted is not tried with each call, whatever upstream said or did not say."""
    async with serving(keys={"good"}) as script, gate(script.url) as made:
        for _ in range(3):
            await made.tries(asker("bad"), credential_headers("bad"))
        assert len(script.asked) == 1
        clock.now += 1.1
        script.keys.add("bad")
        await made.tries(asker("bad"), credential_headers("bad"))
        assert made.admission.admits(asker("bad"), clock.now)
    async with gate(dead_url()) as made:
        await made.tries(asker("key"), credential_headers("key"))
        assert not made.admission.admits(asker("key"), clock.now, is_down=True)


@each("key", [None, "key"])
@bounded
async def test_a_hint(key: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """Where a server refuses calls without a credential, people are told once that clients may show
    theirs in a header that is not known to be one."""
    caplog.set_level("INFO")
    caplog.clear()
    async with serving(keys=set()) as script, gate(script.url) as made:
        for path in ("/generate", "/v1/completions"):
            await made.tries(asker(key, path=path), credential_headers(key))
        assert made.asks_keys is (True if key is None else None)
    assert caplog.text.count("--credential-header") == (key is None)

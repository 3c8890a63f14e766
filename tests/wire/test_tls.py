"""How TLS is spoken to upstream."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from sglang_cached_addon.wire.client import Client, Unreachable
from sglang_cached_addon.wire.connection import Broken
from sglang_cached_addon.wire.tls import tls_context
from tests.certificates import self_signed
from tests.wire.serving import ASKED, against, saying
from tests.wire.test_responses import OK


def test_spoken(tmp_path: Path) -> None:
    """Answers come over TLS as they do without it, and only from a server that is trusted."""
    served, large = self_signed(tmp_path), b"x" * (8 << 20)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large) + large
    cut = OK[:-1]

    async def case(client: Client) -> None:
        first, second = await client.ask(*ASKED), await client.ask(*ASKED)
        assert (first.body, second.body) == (b"ok", large)
        assert first.connection == second.connection
        with pytest.raises(Broken, match="in the middle"):
            await client.ask(*ASKED)

    async def distrusting(client: Client) -> None:
        with pytest.raises(Unreachable, match=r"TLS failed: .*VERIFY"):
            await client.ask(*ASKED)

    url, serve = "https://127.0.0.1", saying(OK, answer, cut)
    trusting = tls_context(authorities=str(tmp_path / "self-signed.pem"))
    against(serve, case, url=url, served_tls=served, tls=trusting)
    against(serve, distrusting, url=url, served_tls=served)


def test_no_tls() -> None:
    """Where upstream does not speak TLS, or hangs up, the error says so."""
    for answer, reason in ((OK, "TLS failed"), (b"", ".")):

        async def serve(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer
        ) -> None:
            await reader.read(1)
            writer.write(answer)

        async def case(client: Client, reason: str = reason) -> None:
            with pytest.raises(Unreachable, match=reason):
                await client.ask(*ASKED)

        against(serve, case, url="https://127.0.0.1")


def test_contexts() -> None:
    """Certificates are checked unless that is turned off, and what cannot be read is an error."""
    assert tls_context().verify_mode is ssl.CERT_REQUIRED
    assert tls_context().check_hostname
    assert tls_context(insecure=True).verify_mode is ssl.CERT_NONE
    for options in ({"authorities": "/nowhere"}, {"certificate": "/nowhere"}):
        with pytest.raises(OSError, match="No such file"):
            tls_context(**options)

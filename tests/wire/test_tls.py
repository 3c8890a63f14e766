"""How TLS is spoken to upstream."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from sglang_cached_addon.wire.client import Client, Unreachable
from sglang_cached_addon.wire.tls import tls_context
from tests.wire.serving import ASKED, against
from tests.wire.test_responses import OK


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

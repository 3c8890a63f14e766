"""What has failed, in words for people."""

from __future__ import annotations

import errno
import socket
import ssl

from sglang_cached_addon.wire.failures import what_failed
from tests.tables import each


def failed_tls() -> ssl.SSLError:
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1)")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


@each(
    ("error", "text"),
    [
        (OSError(errno.ECONNREFUSED, "Connect call failed ('::1', 1)"), "Connection refused"),
        (OSError("Multiple exceptions: ..."), "no address of it can be connected to"),
        (OSError("odd"), "odd"),
        (OSError(), "OSError"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (failed_tls(), "TLS failed: WRONG_VERSION_NUMBER"),
    ],
)
def test_words(error: OSError, text: str) -> None:
    """The system's words, where asyncio's say less."""
    assert what_failed(error) == text

"""What has failed on the way to a server, in words for people."""

from __future__ import annotations

import os
import socket
import ssl


def what_failed(error: OSError) -> str:
    """What has failed, for people."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if error.errno is None:  # asyncio's summary of several attempts
        text = str(error) or type(error).__name__
        return "no address of it can be connected to" if "Multiple" in text else text
    # asyncio's own words for a refused connection say less than the system's; those for a name
    # that is not known are the system's.
    is_name = isinstance(error, socket.gaierror)
    return str(error.strerror) if is_name else os.strerror(error.errno)

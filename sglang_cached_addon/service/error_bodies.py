"""The bodies of errors that are the proxy's own.

Pure.
"""

from __future__ import annotations

import orjson


def error_body(status: int, kind: str, message: str) -> bytes:
    """An error as OpenAI's and SGLang's clients read it."""
    return orjson.dumps({"error": {"message": message, "type": kind, "code": status}})


def unreachable(url: str, message: str) -> bytes:
    """The body of a 502, where upstream gives no answer."""
    text = (
        f"sglang-cached cannot get an answer from {url}: {message}. "
        "Check that the server runs, and that --sglang-url names it; "
        "stored answers are served meanwhile."
    )
    return error_body(502, "BadGateway", text)


def killed(url: str) -> bytes:
    """The body of a 502, where somebody in mitmproxy has ended the call to upstream."""
    return error_body(
        502, "BadGateway", f"sglang-cached: the call to {url} was killed in mitmproxy"
    )

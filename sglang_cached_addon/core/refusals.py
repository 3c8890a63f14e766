"""Why a request is not looked up, as far as its path and its header fields tell.

Pure. What its body tells is its dialect's affair.
"""

from __future__ import annotations

from collections.abc import Mapping

from sglang_cached_addon.core.policy import Reason

_ROUTES = {
    "/api/chat": Reason.OLLAMA,
    "/api/generate": Reason.OLLAMA,
    "/v1/realtime": Reason.REALTIME,
    "/open_session": Reason.STATE,
    "/close_session": Reason.STATE,
    "/generate_from_file": Reason.FILE,
}
"""Routes of SGLang that generate, or belong to what does, and are no dialect's."""

_AUDIO = "/v1/audio/"


def route_refusal(path: str) -> Reason:
    """Why a request whose path, given without its query, is no dialect's is not looked up."""
    return Reason.AUDIO if path.startswith(_AUDIO) else _ROUTES.get(path, Reason.ROUTE)


# Headers that change what is returned, or how the body is to be read (RFC 9110 §8.4).
_REFUSED_HEADERS = {
    b"content-encoding": Reason.ENCODED,
    b"x-body-compressed": Reason.ENCODED,
    # The answer's CORS headers are a function of Origin and of upstream's set-up.
    b"origin": Reason.CROSS_ORIGIN,
}

# Headers of SGLang that put something into the request, or into the answer; of these, some are of
# no more account than the fields of a body that they stand for.
_REFUSED_PREFIXES = (b"x-override-", b"x-sglext-")
_HARMLESS_HEADERS = frozenset((b"x-override-priority", b"x-override-conversation-id"))

# What a client may well say of its connection (RFC 9110 §7.6.1). With any other name in it, a
# header of the message is for us alone: upstream would not see it, and the key would have it.
_OF_THE_CONNECTION = frozenset(
    (b"", b"close", b"keep-alive", b"te", b"trailer", b"trailers", b"upgrade", b"http2-settings")
)


def lookup_refusal(headers: Mapping[bytes, bytes]) -> Reason | None:
    """Why a request with this head is not looked up. Header names are lower-case."""
    for name in headers:
        if name in _REFUSED_HEADERS:
            return _REFUSED_HEADERS[name]
        if name.startswith(_REFUSED_PREFIXES) and name not in _HARMLESS_HEADERS:
            return Reason.HEADER
    named = headers.get(b"connection", b"").lower().split(b",")
    if any(name.strip() not in _OF_THE_CONNECTION for name in named):
        return Reason.HEADER
    media_type = headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
    # SGLang refuses other types on these routes, so a hit would open what it had closed.
    return None if media_type == b"application/json" else Reason.CONTENT_TYPE

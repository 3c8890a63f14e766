"""What may be looked up, and what may be stored; every "no" has a name.

Pure: takes heads and values, gives a `Reason` or None. A reason reaches the user in
`Cache-Status` (`detail`), in the log line and in a counter of `/cache/stats`.
Rules that need to know one API's fields live in its dialect, which raises `Refused`
with a reason from here. Unknown means: forward untouched, and do not store.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

MAX_N = 10_000
"""Samples of one prompt in one call. SGLang names no bound; more than this is forwarded unread."""

MAX_BODY = 64 * 1024 * 1024
"""Bytes of a request body that are read to be keyed; a larger one is passed on as it comes."""


class Reason(StrEnum):
    """Why a call was not looked up, or its answer not stored. The values are public."""

    # not looked up: the call is passed on untouched (bypass)
    ROUTE = "route"
    STREAM = "stream"
    INVALID_JSON = "invalid-json"
    DUPLICATE_KEY = "duplicate-key"
    MALFORMED = "malformed"
    CONTENT_TYPE = "content-type"
    ENCODED = "encoded"
    QUERY = "query"
    HEADER = "header"
    CROSS_ORIGIN = "cross-origin"
    TOO_LARGE = "too-large"
    STATE = "state"
    MEDIA = "media-by-reference"
    DISAGGREGATION = "disaggregation"
    BEAM = "beam"
    INSEPARABLE = "inseparable"
    # looked up and forwarded, but the answer is not stored
    STATUS = "status"
    ERROR = "error"
    ABORT = "abort"
    UNFINISHED = "unfinished"
    MIXED_WEIGHTS = "mixed-weights"
    NO_USAGE = "no-usage"
    LOST_LOGPROBS = "lost-logprobs"
    UNREADABLE = "unreadable-answer"
    CLEARED = "cleared"
    UNREACHABLE = "unreachable"
    CUT = "cut"


REASONS = {
    Reason.ROUTE: "another route: passed on, with no headers added",
    Reason.STREAM: "a stream with fields that it answers in another form than JSON does, as "
    "`return_hidden_states`",
    Reason.INVALID_JSON: "not JSON as SGLang reads it, or integers beyond 64 bits",
    Reason.DUPLICATE_KEY: "an object with a key twice",
    Reason.MALFORMED: "no prompt, an odd `n` (0, negative, text, over 10,000), other wrong types",
    Reason.CONTENT_TYPE: "not `application/json`",
    Reason.ENCODED: "a compressed body",
    Reason.QUERY: "a query behind the path",
    Reason.HEADER: "`x-sglext-*` and `x-override-rid`, which change what is returned",
    Reason.CROSS_ORIGIN: "a browser's `Origin`, which the answer's CORS headers depend on",
    Reason.TOO_LARGE: "a body over 64 MiB",
    Reason.STATE: "state held by the server: `session_params`, `previous_response_id`",
    Reason.MEDIA: "media by URL or path, which may change behind an equal body",
    Reason.DISAGGREGATION: "`bootstrap_*` and the like, of prefill and decode servers",
    Reason.BEAM: "beam search",
    Reason.INSEPARABLE: "a list or `n > 1` with fields that cannot be told apart by prompt",
    Reason.STATUS: "the upstream's status is not 200",
    Reason.ERROR: "an error in a 200",
    Reason.ABORT: "an aborted sample anywhere in the answer",
    Reason.UNFINISHED: "a sample without a finish reason",
    Reason.MIXED_WEIGHTS: "the model's weights changed during the generation",
    Reason.NO_USAGE: "a stream that does not tell its usage, which a JSON answer has",
    Reason.LOST_LOGPROBS: "a stream without the log-probabilities of some tokens, which a JSON "
    "answer has",
    Reason.UNREADABLE: "an answer that is not what was asked for",
    Reason.CLEARED: "the cache was cleared while the answer was on its way",
    Reason.UNREACHABLE: "no connection to the upstream",
    Reason.CUT: "the upstream, or the client, hung up before the answer was complete",
}
"""Each reason for people; the README's table."""


class Refused(Exception):
    """A call that is not looked up, or an answer that is not stored."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


# Headers that change what is returned, or how the body is to be read. RFC 9110 §8.4 for
# content-encoding; the others are SGLang's own.
_REFUSED_HEADERS = {
    b"content-encoding": Reason.ENCODED,
    b"x-body-compressed": Reason.ENCODED,
    b"x-sglext-return-input-ids": Reason.HEADER,
    b"x-sglext-return-output-ids": Reason.HEADER,
    b"x-sglext-ids-framed": Reason.HEADER,
    b"x-override-rid": Reason.HEADER,
    # The answer's CORS headers are a function of Origin and of upstream's set-up.
    b"origin": Reason.CROSS_ORIGIN,
}


def lookup_refusal(headers: Mapping[bytes, bytes]) -> Reason | None:
    """Why a request with this head is not looked up. Header names are lower-case."""
    for name in headers:
        if name in _REFUSED_HEADERS:
            return _REFUSED_HEADERS[name]
    media_type = headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
    # SGLang refuses other types on these routes, so a hit would open what it had closed.
    return None if media_type == b"application/json" else Reason.CONTENT_TYPE


def store_refusal(status: int) -> Reason | None:
    """Why an answer with this status is not stored."""
    return None if status == 200 else Reason.STATUS

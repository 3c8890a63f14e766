"""Why heads of requests are not looked up."""

from __future__ import annotations

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.refusals import lookup_refusal, route_refusal
from tests.tables import each

JSON = {b"content-type": b"application/json"}


@each(
    "value",
    [
        b"application/json", b"Application/JSON", b"application/json; charset=utf-8",
        b"application/json;charset=utf-8", b" application/json ",
    ],
)  # fmt: skip
def test_json_is_looked_up(value: bytes) -> None:
    """The headers of ordinary clients are no reason against a look-up."""
    assert lookup_refusal({b"content-type": value, b"user-agent": b"x", b"accept": b"*/*"}) is None


@each("value", [b"", b"close", b"Keep-Alive, TE", b"Upgrade,HTTP2-Settings"])
def test_what_is_said_of_the_connection(value: bytes) -> None:
    """It says nothing of the call."""
    assert lookup_refusal({**JSON, b"connection": value}) is None


HEADS: dict[Reason, list[dict[bytes, bytes]]] = {
    Reason.CONTENT_TYPE: [{}, *({b"content-type": kind} for kind in (
        b"", b"text/plain", b"application/jsonl", b"application/json-seq",
        b"text/plain; x=application/json", b"text/plain, application/json",
    ))],
    Reason.ENCODED: [{**JSON, name: b"x"} for name in (b"content-encoding", b"x-body-compressed")],
    Reason.HEADER: [{**JSON, b"connection": b"close, X-Model-Id"}, *({**JSON, k: b"1"} for k in (
        b"x-sglext-return-input-ids", b"x-sglext-return-output-ids", b"x-sglext-ids-framed",
        b"x-sglext-of-tomorrow", b"x-override-rid", b"x-override-bootstrap-host",
        b"x-override-bootstrap-room", b"x-override-routed-dp-rank",
        b"x-override-disagg-prefill-dp-rank", b"x-override-of-tomorrow",
    ))],
    Reason.CROSS_ORIGIN: [{**JSON, b"origin": b"http://example.com"}],
}  # fmt: skip


def test_heads_that_are_not_looked_up() -> None:
    """Headers that change what is asked or answered are a reason against a look-up."""
    for reason, heads in HEADS.items():
        for headers in heads:
            assert lookup_refusal(headers) is reason, headers


def test_routes() -> None:
    """A route that generates and is not looked up has a reason of its own; all else is a route."""
    for path, reason in {
        "/v1/audio/transcriptions": Reason.AUDIO, "/v1/audio/of/tomorrow": Reason.AUDIO,
        "/api/chat": Reason.OLLAMA, "/api/generate": Reason.OLLAMA, "/api/tags": Reason.ROUTE,
        "/v1/realtime": Reason.REALTIME, "/open_session": Reason.STATE,
        "/close_session": Reason.STATE, "/generate_from_file": Reason.FILE,
        "/v1/audio": Reason.ROUTE, "/v1/models": Reason.ROUTE, "/health": Reason.ROUTE,
    }.items():  # fmt: skip
        assert route_refusal(path) is reason, path

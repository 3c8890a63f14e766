"""Bodies that are passed on as they come are kept, within a bound."""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy import http

from sglang_cached_addon.proxy import kept
from sglang_cached_addon.proxy.kept import MAX_KEPT
from tests.tables import each


@each(
    ("pieces", "body"),
    [
        ([b"a", b"bc", b""], b"abc"),
        ([b""], b""),
        ([bytes(MAX_KEPT), b""], bytes(MAX_KEPT)),
        ([bytes(MAX_KEPT), b"a", b"b", b""], None),
        ([b"broke", b"off"], b"brokeoff"),
    ],
    ids=["some", "none", "all that may be", "too much", "no end"],
)
def test_pieces(pieces: list[bytes], body: bytes | None) -> None:
    """Each piece goes on as it is; at the end, the message has the whole, or nothing."""
    message = http.Response.make()
    message.raw_content = None
    kept.pass_on(message, is_seen=True)
    assert isinstance(message.stream, Callable)  # type: ignore[arg-type]
    assert [message.stream(piece) for piece in pieces] == pieces  # type: ignore[operator]
    if pieces[-1]:
        kept.broke_off(message)
    assert message.raw_content == body


def test_others_ways() -> None:
    """An addon that changes the pieces keeps its way, and nothing is kept where nobody looks."""
    message = http.Response.make()
    message.stream = bytes.upper
    kept.pass_on(message, is_seen=True)
    assert message.stream == bytes.upper
    message.stream = False
    kept.pass_on(message, is_seen=False)
    assert message.stream is True
    kept.broke_off(message)
    assert message.raw_content == b""

"""Events that differ in their text alone."""

from __future__ import annotations

from sglang_cached_addon.dialects.frame import Frame
from tests.tables import each

FRAME = Frame(b'{"text":', b"}")


@each(
    ("said", "text"),
    [
        (b'{"text":"a"}', "a"), (b'{"text":"\\u00e9 \\""}', "\u00e9 \""), (b'{"text":""}', ""),
        (b'{"text":1}', ""), (b'{"text":["a"]}', ""), (b'{"text":"a","x":"b"}', ""),
        (b'{"text":"a"', ""), (b'{"other":"a"}', ""), (b'{"text":}', ""), (b"", ""),
        (b'{"text":"a"} ', ""),
    ],
)  # fmt: skip
def test_text(said: bytes, text: str) -> None:
    """What has the frame, and just a string in it, is that text; anything else is none."""
    assert FRAME.text(said) == text

"""The body of a message that is passed on as it comes, kept for those who look at the flow.

mitmproxy keeps none: before release 12 it cannot, and from then on it has an option for all that is
streamed, without a bound.
"""

from __future__ import annotations

from mitmproxy import http

MAX_KEPT = 16 << 20
"""Bytes of a body that is kept. Of a longer one nothing is, and it is shown as missing."""


def pass_on(message: http.Message, *, is_seen: bool) -> None:
    """The body of a message is passed on as it comes, and kept if it `is_seen`. An addon that makes
    something else of it has that way."""
    if not callable(message.stream):
        message.stream = Kept(message) if is_seen else True


def broke_off(message: http.Message | None) -> None:
    """There is no more of a body that is not complete."""
    if message and isinstance(message.stream, Kept):
        message.stream.end()


class Kept:
    """Called with each piece of the body, and with nothing at its end, as `Message.stream` is."""

    def __init__(self, message: http.Message) -> None:
        self._message = message
        self._pieces: list[bytes] = []
        self._size = 0

    def __call__(self, data: bytes) -> bytes:
        if not data:
            self.end()
        elif self._size <= MAX_KEPT:
            self._size += len(data)
            self._pieces.append(data)
            if self._size > MAX_KEPT:
                self._pieces.clear()
        return data

    def end(self) -> None:
        """There is no more: the message has what has come."""
        self._message.raw_content = None if self._size > MAX_KEPT else b"".join(self._pieces)
        self._pieces.clear()

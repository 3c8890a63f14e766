"""Server-sent events, as bytes: a stream taken apart into events, and events put together.

Pure. An event is its bytes, up to and with the empty line that ends it; what it says is its
`data`. The format is WHATWG HTML §9.2; SGLang sends one `data:` line an event, and one event
a chunk of HTTP, but other servers, and proxies between, may not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

DONE = b"data: [DONE]\n\n"
"""The event that ends a complete stream."""

DONE_DATA = b"[DONE]"

# Lines of SGLang's streams end with LF; CR LF is read too. Nobody ends them with CR alone.
_END = re.compile(rb"\n\r?\n")
_LINE = re.compile(rb"\r?\n")
_NAMED = re.compile(rb"event: ([a-z_.]+)\ndata: ([^\r\n]*)\n\n")
"""An event with a name and one line of data, as servers write them."""
_SILENT = (b"", b"id", b"retry")

MAX_EVENT = 64 << 20
"""How many bytes are kept of an event that has not ended."""


class Splitter:
    """Takes the bytes of a stream as they come, and gives its whole events."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        """What has come of an unfinished event, in parts: it may be large, and is joined once."""
        self._last = b""
        """The last two bytes of the parts, in which the end of the event may begin."""
        self._size = 0
        """How many bytes the parts have together."""
        self._is_too_long = False
        """The unfinished event is given on as it comes, until it ends."""

    @property
    def unfinished(self) -> bytes:
        """What has come of an event that is not whole yet."""
        return b"".join(self._parts)

    def feed(self, data: bytes) -> list[bytes]:
        if not self._parts and data.find(b"\n\n") == len(data) - 2 >= 0 and b"\r" not in data:
            self._is_too_long = False
            return [data]
        searched = self._last + data
        if not _END.search(searched):
            if data:
                self._parts.append(data)
                self._size += len(data)
                self._last = searched[-2:]
            return []
        data = b"".join([*self._parts, data])
        events, start, at = [], 0, len(data) - len(searched)
        while match := _END.search(data, at):
            at = match.end()
            events.append(data[start:at])
            start = at
        rest = data[start:]
        self._is_too_long = False
        self._hold(rest)
        return events

    def overflow(self) -> list[bytes]:
        """What has come of an unfinished event that is too long to be kept, and else nothing. What
        comes of it later is given here, too, but for its end, which `feed` gives as an event."""
        self._is_too_long = self._is_too_long or self._size > MAX_EVENT
        if not self._is_too_long:
            return []
        parts = self._parts  # as they came: to join them would take as much memory once more
        self._hold(b"")
        return parts

    def _hold(self, rest: bytes) -> None:
        self._parts = [rest] if rest else []
        self._last, self._size = rest[-2:], len(rest)


def data(event: bytes, names: Collection[bytes] = ()) -> bytes | None:
    """The data of an event; None where it has none, as a comment, or where the event has a name
    that is none of these."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    if names and (plain := _NAMED.fullmatch(event)) and plain[1] in names:
        return plain[2]
    said = []
    for name, value in _fields(event):
        if name == b"data":
            said.append(value)
        elif name == b"event" and value not in (b"", b"message", *names):
            return None
    return b"\n".join(said) if said else None


def is_silent(event: bytes) -> bool:
    """Whether an event means nothing, like a comment that keeps a connection open."""
    return all(name in _SILENT for name, _ in _fields(event))


def _fields(event: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The name and value of each line; a comment has no name."""
    for line in _LINE.split(event):
        name, _, value = line.partition(b":")
        yield name, value.removeprefix(b" ")


def event(said: bytes, name: bytes = b"") -> bytes:
    """An event with this data, which is one line."""
    return b"event: %b\ndata: %b\n\n" % (name, said) if name else b"data: %b\n\n" % said

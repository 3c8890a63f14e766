"""Server-sent events, as bytes: a stream taken apart into events, and events put together.

Pure. An event is its bytes, up to and with the empty line that ends it; what it says is its
`data`. The format is WHATWG HTML §9.2; SGLang sends one `data:` line an event, and one event
a chunk of HTTP, but other servers, and proxies between, may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

DONE = b"data: [DONE]\n\n"
"""The event that ends a complete stream."""

DONE_DATA = b"[DONE]"

# Lines of SGLang's streams end with LF; CR LF is read too. Nobody ends them with CR alone.
_END = re.compile(rb"\n\r?\n")
_LINE = re.compile(rb"\r?\n")
_SILENT = (b"", b"id", b"retry")


class Splitter:
    """Gives the whole events of a stream, from its bytes as they come."""

    def __init__(self) -> None:
        self.rest = b""
        """What has come of an event that goes on."""

    def feed(self, data: bytes) -> list[bytes]:
        if not self.rest and data.find(b"\n\n") == len(data) - 2 >= 0 and b"\r" not in data:
            return [data]
        data = self.rest + data
        # The rest has been searched before, but for an end that it is a part of.
        events, start, at = [], 0, max(0, len(self.rest) - 2)
        while match := _END.search(data, at):
            at = match.end()
            events.append(data[start:at])
            start = at
        self.rest = data[start:]
        return events


def data(event: bytes) -> bytes | None:
    """What an event says; None where it says nothing, as a comment, or has a name of its own."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]
    said = []
    for name, value in _fields(event):
        if name == b"data":
            said.append(value)
        elif name == b"event" and value not in (b"", b"message"):
            return None
    return b"\n".join(said) if said else None


def is_silent(event: bytes) -> bool:
    """Whether an event says nothing to anyone, as a comment that keeps a connection open."""
    return all(name in _SILENT for name, _ in _fields(event))


def _fields(event: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and values; a comment has no name."""
    for line in _LINE.split(event):
        name, _, value = line.partition(b":")
        yield name, value.removeprefix(b" ")


def event(said: bytes) -> bytes:
    """The event that says this, in one line."""
    return b"data: %b\n\n" % said

"""mitmproxy's reader of upstream's answers, for what is passed on: strict, bounded, to an end.

mitmproxy takes an interim response for the answer, stops at a trailer, and reads heads and chunk
lines of any length; with older versions of h11, any two bytes end a chunk. What is overridden is
where its `Http1Client` reads heads and bodies.
"""

from __future__ import annotations

import re

from mitmproxy.proxy import commands, events, layer

from sglang_cached_addon.proxy.inside import ChunkedReader, http1, http_base, http_events
from sglang_cached_addon.wire.heads import MAX_FIELDS, MAX_HEAD, FramingError
from sglang_cached_addon.wire.strict import StrictReader

# As h11 has it, which reads it next: servers may end lines with LF alone.
_HEAD_END = re.compile(rb"\n\r?\n")
# But 101, which is an answer: what follows is no HTTP (RFC 9110 §15.2.2).
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9][0-9][ \r\n]")


class StrictHttp1Client(http1.Http1Client):
    """Takes the place of an `Http1Client`."""

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived) and self.request:
            try:
                is_whole = self._skip_interim()
            except FramingError as e:
                yield commands.CloseConnection(self.conn)
                assert self.stream_id is not None
                code = http_events.ResponseProtocolError.code
                error = f"Cannot parse HTTP response: {e}"
                yield http_base.ReceiveHttp(
                    http_events.ResponseProtocolError(self.stream_id, error, code)
                )
                return
            if not is_whole:
                return
        yield from super().read_headers(event)

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if type(self.body_reader) is ChunkedReader:
            self.body_reader = StrictReader()
        yield from super().read_body(event)

    def _skip_interim(self) -> bool:
        """Leaves out what comes before the answer; whether its head is whole."""
        while True:
            data = bytes(self.buf)
            end = _HEAD_END.search(data)
            size = end.start() if end else len(data)
            if size > MAX_HEAD or data.count(b"\n", 0, size) > MAX_FIELDS:
                raise FramingError(502, "its head is too long")
            if end is None:
                return False
            if not _INTERIM.match(data):
                return True
            self.buf.maybe_extract_lines()

"""Bytes of HTTP/1.1 to a plain request and back, for the fast lane.

Pure and strict: only a request head whose every byte is understood gives a `PlainHead`; any
other is `FOREIGN`, left to a full HTTP implementation. What is refused here costs speed,
what is accepted wrongly would cost the truth (RFC 9112 §2 to §6, request smuggling).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256

from sglang_cached_addon.core import policy, runs
from sglang_cached_addon.core.call_head import CallHead, CallHeads, by_name
from sglang_cached_addon.wire import heads
from sglang_cached_addon.wire.heads import MAX_HEAD

_REMEMBERED = 1024
"""How many heads are remembered: clients send the same one again and again."""


class NoHead(Enum):
    """Why there is no head to be read."""

    PARTIAL = "the head goes on"
    FOREIGN = "for a full HTTP implementation"


@dataclass(frozen=True, slots=True)
class PlainHead:
    """A request head that is plain in every way, and whose body may be looked up."""

    call: CallHead
    size: int
    """How many bytes the head has, with its empty line."""
    length: int
    """How many bytes the body has."""
    closes: bool
    """The client wants the connection closed after the answer."""


_FRAMING = {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings"}
"""Fields that change how the message is framed, or what may follow it: no plain head has one."""
_ONCE = {b"content-length", b"host", b"content-type", b"connection"}
"""Fields that a plain head has at most once."""

_RUN = re.compile(rb"([A-Z]+ )/run/(%b)/" % runs.NAME.pattern.encode())
"""What begins a request line whose path names a run."""


class HeadReader:
    """Reads request heads for some (method, path) pairs."""

    def __init__(
        self, routes: Collection[tuple[str, str]], call_heads: CallHeads | None = None
    ) -> None:
        self._heads = call_heads or CallHeads()
        self._once = _ONCE | set(self._heads.credential_fields)
        self._lines = {
            f"{method} {path} HTTP/1.1".encode(): (method, path) for method, path in routes
        }
        self._seen: dict[bytes, PlainHead | None] = {}
        """The heads that were read, by the digests of their bytes, which have credentials in
        them."""

    def read(self, data: bytes | bytearray, at: int = 0, searched: int = 0) -> PlainHead | NoHead:
        """The head that begins at this place of the data; it does not end in the first `searched`
        bytes."""
        end = data.find(b"\r\n\r\n", max(searched - 3, at))
        if end < 0:
            return self._begun(data, at)
        if end - at > MAX_HEAD:
            return NoHead.FOREIGN
        raw = bytes(data[at : end + 4])
        digest = sha256(raw).digest()
        try:
            head = self._seen[digest]
        except KeyError:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            head = self._seen[digest] = self._parse(raw)
        return head or NoHead.FOREIGN

    def _begun(self, data: bytes | bytearray, at: int) -> NoHead:
        """Whether an incomplete head may be for one of the routes."""
        if len(data) - at > MAX_HEAD:
            return NoHead.FOREIGN
        line, is_whole, _ = bytes(data[at : at + 256]).partition(b"\r\n")
        line = _RUN.sub(rb"\1/", line, count=1)
        if is_whole:
            return NoHead.PARTIAL if line in self._lines else NoHead.FOREIGN
        line = line.removesuffix(b"\r")
        is_ours = any(known.startswith(line) for known in self._lines)
        return NoHead.PARTIAL if is_ours else NoHead.FOREIGN

    def _parse(self, raw: bytes) -> PlainHead | None:
        line = raw[: raw.index(b"\r\n")]
        run = _RUN.match(line)
        route = self._lines.get(run[1] + line[run.end() - 1 :] if run else line)
        if route is None:
            return None
        try:
            head = heads.parse(raw)
        except heads.FramingError:
            return None
        names = [name.lower() for name, _ in head.fields]
        if any(name in _FRAMING for name in names):
            return None
        if any(names.count(name) > 1 for name in self._once.intersection(names)):
            return None
        headers = by_name(head.fields)
        call = self._heads.read(*route, headers, run[2].decode() if run else "")
        connection = headers.get(b"connection", b"keep-alive").lower()
        if (
            b"content-length" not in headers
            or head.length is None
            or head.length > policy.MAX_BODY
            or connection not in (b"keep-alive", b"close")
            or call.refusal
            or not runs.NAME.fullmatch(headers.get(runs.HEADER, b"-").decode("latin-1"))
        ):
            return None
        return PlainHead(call, len(raw), head.length, closes=connection == b"close")


def hit_head(size: int, status: bytes, places: bytes, *, is_stream: bool) -> bytes:
    """What each answer of a hit begins with: its head as far as the name of `Age`. `size` is its
    body's in bytes, `status` the value of `Cache-Status`, `places` that of `X-Cache-Sample`."""
    sample = b"X-Cache-Sample: %b\r\n" % places if places else b""
    if is_stream:
        return _STREAM_HIT % (status, sample)
    return _HIT % (size, status, sample)


def hit(head: bytes, age: int, request_id: bytes, body: bytes) -> bytes:
    """A hit as it goes over the wire, byte for byte as the hooks have it sent. `head` is as of
    `hit_head`; the body of a stream is in chunks already."""
    return b"%b%d\r\nX-Request-Id: %b\r\n\r\n%b" % (head, age, request_id, body)


_HIT = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: %d\r\n"
    b"Cache-Status: %b\r\nX-Cache: HIT\r\n%bAge: "
)

EVENT_STREAM = "text/event-stream; charset=utf-8"
"""The media type of a stream, as SGLang has it."""

_STREAM_HIT = (
    b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n"
    b"Cache-Status: %%b\r\nX-Cache: HIT\r\n%%bAge: "
) % EVENT_STREAM.encode()


LAST_CHUNK = b"0\r\n\r\n"
"""The end of a body in chunks (RFC 9112 §7.1)."""


def chunks(events: Iterable[bytes]) -> bytes:
    """Each event in a chunk of its own, as SGLang sends them, one of whose clients takes chunks for
    events. No event may be empty: an empty chunk is the end."""
    return b"".join([b"%x\r\n%b\r\n" % (len(event), event) for event in events])


def chunked(events: Iterable[bytes]) -> bytes:
    """A whole body of events."""
    return chunks(events) + LAST_CHUNK


def unchunked(body: bytes) -> list[bytes]:
    """The events of such a body: the inverse of `chunked`."""
    events, at = [], 0
    while size := int(body[at : (line := body.index(b"\r\n", at))], 16):
        events.append(body[line + 2 : line + 2 + size])
        at = line + 4 + size
    return events

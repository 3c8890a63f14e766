"""Server-sent events: what comes in any pieces is told apart in the same way."""

from __future__ import annotations

import random
import time

from sglang_cached_addon.wire import sse
from sglang_cached_addon.wire.sse import Splitter
from tests.tables import each

ONE = b'data: {"a":1}\n\n'
TWO = b'data: {"b":2}\n\n'
SPANISH = 'data: {"text":"ñ𝄞�"}\n\n'.encode()

STREAMS: dict[str, tuple[list[bytes], bytes]] = {
    "nothing": ([], b""),
    "one": ([ONE], b""),
    "two": ([ONE, TWO], b""),
    "three, the last": ([ONE, SPANISH, sse.DONE], b""),
    "the end is missing": ([ONE], b'data: {"b":2}\n'),
    "half a character": ([ONE], SPANISH[:16]),
    "CR LF": ([b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"], b""),
    "CR LF, half an end": ([b"data: 1\r\n\r\n"], b"data: 2\r\n\r"),
    "CR LF before LF": ([b"data: 1\r\n\r\n", ONE], b""),
    "LF before CR LF": ([ONE, b"data: 1\r\n\r\n"], b""),
    "an LF, then a CR LF": ([b"data: 1\n\r\n", ONE], b""),
    "a CR LF, then an LF": ([b"data: 1\r\n\n", ONE], b""),
    "a comment": ([b": ping\n\n", ONE], b""),
    "a comment in an event": ([b": ping\ndata: 1\n\n", ONE], b""),
    "many lines": ([b"data: 1\ndata: 2\n\n", ONE], b""),
    "a name": ([b"event: sglext_ids\ndata: {}\n\n", ONE], b""),
    "empty lines": ([b"\n\n", b"\n\n", ONE], b""),
    "three LFs": ([ONE, b"\ndata: 2\n\n"], b""),
    "no data at all": ([], b"upstream speaks HTML"),
    "a lone LF": ([], b"\n"),
    "zeros": ([b"data: \0\n\n"], b"\0"),
}


def split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    """The events of a stream that comes in these pieces, and what is left over."""
    splitter = Splitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.unfinished


@each(("events", "rest"), STREAMS.values(), ids=STREAMS)
def test_any_pieces(events: list[bytes], rest: bytes) -> None:
    """Events are the same however their bytes are cut."""
    whole = b"".join(events) + rest
    assert split([whole]) == (events, rest)
    assert split([*events, rest]) == (events, rest)
    assert split([whole[i : i + 1] for i in range(len(whole))]) == (events, rest)
    for i in range(len(whole) + 1):
        assert split([whole[:i], whole[i:]]) == (events, rest), i
        assert split([whole[:i], b"", whole[i:]]) == (events, rest), i


def test_random_bytes() -> None:
    """No byte is lost of whatever comes."""
    rng = random.Random(1)
    for _ in range(2000):
        whole = bytes(rng.choices(b"\n\n\n\r: d", k=rng.randrange(24)))
        events, rest = split([whole])
        assert b"".join(events) + rest == whole
        cuts = sorted(rng.choices(range(len(whole) + 1), k=3))
        ends = [*cuts, len(whole)]
        pieces = [whole[i:j] for i, j in zip([0, *cuts], ends, strict=True)]
        assert split(pieces) == (events, rest), pieces


def test_events_come_at_once() -> None:
    """An event is given as soon as it is whole."""
    splitter = Splitter()
    assert splitter.feed(ONE + TWO[:5]) == [ONE]
    assert splitter.unfinished == TWO[:5]
    assert splitter.feed(TWO[5:-1]) == []
    assert splitter.feed(TWO[-1:]) == [TWO]
    assert splitter.unfinished == b""


DATA = {
    "SGLang's": (ONE, b'{"a":1}'),
    "the last": (sse.DONE, sse.DONE_DATA),
    "characters": (SPANISH, SPANISH[6:-2]),
    "no space": (b"data:1\n\n", b"1"),
    "two spaces": (b"data:  1\n\n", b" 1"),
    "colons": (b"data: a: b\n\n", b"a: b"),
    "nothing": (b"data: \n\n", b""),
    "no value": (b"data\n\n", b""),
    "CR LF": (b"data: [DONE]\r\n\r\n", b"[DONE]"),
    "CR LF, LF": (b"data: [DONE]\r\n\n", b"[DONE]"),
    "LF, CR LF": (b"data: [DONE]\n\r\n", b"[DONE]"),
    "many lines": (b"data: {\ndata: }\n\n", b"{\n}"),
    "a comment before": (b": ping\ndata: 1\n\n", b"1"),
    "an empty line before": (b"\ndata: 1\n\n", b"1"),
    "id and retry": (b"id: 7\nretry: 10\ndata: 1\n\n", b"1"),
    "the usual name": (b"event: message\ndata: 1\n\n", b"1"),
    "the usual name, behind": (b"data: 1\nevent: message\n\n", b"1"),
    "no name": (b"event:\ndata: 1\n\n", b"1"),
    "a name": (b"event: sglext_ids\ndata: 1\n\n", None),
    "a name behind": (b"data: 1\nevent: error\n\n", None),
    "a comment": (b": ping\n\n", None),
    "a comment of data": (b":data: 1\n\n", None),
    "other fields": (b"id: 7\n\n", None),
    "an empty line": (b"\n\n", None),
    "another field that begins so": (b"database: 1\n\n", None),
    "upper case": (b"DATA: 1\n\n", None),
    "a byte order mark": (b"\xef\xbb\xbfdata: 1\n\n", None),
}


@each(("event", "said"), DATA.values(), ids=DATA)
def test_data(event: bytes, said: bytes | None) -> None:
    """The data of an event is read as the format has it."""
    assert sse.data(event) == said
    assert sse.data(event, (b"ping",)) == said


@each(
    ("event", "said"),
    [
        (b"event: ping\ndata: 1\n\n", b"1"), (b"event:ping\r\ndata:1\r\n\r\n", b"1"),
        (b"data: 1\nevent: stop\n\n", b"1"), (b"event: ping\ndata: 1\ndata: 2\n\n", b"1\n2"),
        (b"event: other\ndata: 1\n\n", None), (b"event: pin\ndata: 1\n\n", None),
        (b"event: ping\n\n", None), (b"data: 1\n\n", b"1"), (b": ping\n\n", None),
    ],
)  # fmt: skip
def test_data_of_named_events(event: bytes, said: bytes | None) -> None:
    """The data of an event is read if its name is known."""
    assert sse.data(event, (b"ping", b"stop")) == said


@each(
    ("event", "silent"),
    [
        (b": ping\n\n", True),
        (b":\r\n\r\n", True),
        (b"\n\n", True),
        (b"id: 7\nretry: 10\n\n", True),
        (b"event: sglext_ids\ndata: 1\n\n", False),
        (b"event: error\n\n", False),
        (b"data: 1\n\n", False),
        (b"data\n\n", False),
        (b": ping\ndata: 1\n\n", False),
        (b"\xef\xbb\xbfdata: 1\n\n", False),
        (b"<html>\n\n", False),
    ],
)
def test_silent(event: bytes, silent: bool) -> None:
    """Only what means nothing is silent."""
    assert sse.is_silent(event) is silent


@each("said", [b"", b" ", b"1", b"[DONE]", b": x", "ñ�".encode(), b"a\0b"])
def test_inverse(said: bytes) -> None:
    """The data of recorded events is written as it was."""
    assert sse.data(sse.event(said)) == said
    assert split([sse.event(said)]) == ([sse.event(said)], b"")
    assert sse.event(sse.DONE_DATA) == sse.DONE


def test_a_large_event_in_many_pieces() -> None:
    """A large event in many pieces is read in linear time."""
    splitter, piece = Splitter(), b"x" * (64 << 10)
    began = time.process_time()
    assert not any(splitter.feed(piece) for _ in range(1000))
    assert len(splitter.unfinished) == 1000 * len(piece)
    (event,) = splitter.feed(b"\n\n")
    assert len(event) == 1000 * len(piece) + 2
    assert time.process_time() - began < 2


def test_an_event_that_does_not_end() -> None:
    """An event without an end is let go of within a bound."""
    splitter, piece, given = Splitter(), b"x" * (1 << 20), 0
    for _ in range(70):
        assert splitter.feed(piece) == []
        given += sum(map(len, splitter.overflow()))
    assert given + len(splitter.unfinished) == 70 * len(piece)
    assert given > sse.MAX_EVENT
    assert splitter.feed(b"y\n\ndata: a\n\ndata: b") == [b"y\n\n", b"data: a\n\n"]
    assert splitter.overflow() == []
    assert splitter.unfinished == b"data: b"

"""What an upstream says on a route that is passed on, odd or endless, and what the client gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import requests

from sglang_cached_addon.wire.chunks import MAX_LINE
from sglang_cached_addon.wire.heads import MAX_FIELDS, MAX_HEAD
from tests.conftest import Proxy, StartProxy, read_all
from tests.e2e.conftest import LANES
from tests.hearing import OK, Hearing, hearing, saying

LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=LANES)
def ways(request: pytest.FixtureRequest) -> list[str]:
    return LANES[request.param]


@pytest.fixture
def upstream() -> Iterator[Hearing]:
    with hearing() as server:
        yield server


@pytest.fixture
def front(upstream: Hearing, start_proxy: StartProxy, ways: list[str]) -> Proxy:
    return start_proxy(upstream.url, *ways)


GOOD = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "103, twice": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + OK,
    "102 with LF alone": b"HTTP/1.1 102 Processing\n\n" + OK,
    "trailers": CHUNKED + b"2\r\n{}\r\n0\r\nX-Sum: 1\r\nB: 2\r\n\r\n",
    "extensions": CHUNKED + b"1;a=b\r\n{\r\n01 ;c\r\n}\r\n0\r\n\r\n",
    "padded sizes": CHUNKED + b"2  \r\n{}\r\n0 \r\n\r\n",
    "LF alone": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
}


def test_good(upstream: Hearing, front: Proxy) -> None:
    """An answer is passed on, whatever comes before or behind it."""
    for name, said in GOOD.items():
        for path in ("/v1/other", "/generate"):
            upstream.answer = lambda heard: said  # noqa: B023
            with requests.Session() as session:
                for _ in range(3):
                    answer = session.post(f"{front.url}{path}", data=b"x", timeout=30)
                    assert (answer.status_code, answer.content) == (200, b"{}"), (name, path)
    assert not upstream.errors
    assert "Traceback" not in front.log


BAD = {
    "any two bytes end a chunk": CHUNKED + b"2\r\n{}XX0\r\n\r\n",
    "no size": CHUNKED + b"\r\n",
    "a long chunk line": CHUNKED + b"2;" + b"a" * MAX_LINE + b"\r\n{}\r\n0\r\n\r\n",
    "long trailers": CHUNKED + b"0\r\n" + b"A: 1\r\n" * MAX_HEAD + b"\r\n",
}
REFUSED = {
    "a long head": LINE + b"A: " + b"a" * MAX_HEAD + b"\r\n\r\n",
    "many fields": LINE + b"A: 1\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    "a long interim head": b"HTTP/1.1 103 A\r\nA: " + b"a" * MAX_HEAD + b"\r\n\r\n" + OK,
}


def test_bad(upstream: Hearing, front: Proxy) -> None:
    """What is not whole is not taken for whole, nor what comes behind it for another answer."""
    for said in BAD.values():
        upstream.answer = lambda heard: said  # noqa: B023
        with pytest.raises(requests.exceptions.RequestException):
            requests.get(f"{front.url}/v1/other", timeout=30)
    for said in REFUSED.values():
        upstream.answer = lambda heard: said  # noqa: B023
        answer = requests.get(f"{front.url}/v1/other", timeout=30)
        assert (answer.status_code, "error" in answer.json()) == (502, True)
    assert "Traceback" not in front.log


ENDLESS = {
    "head": (b"HTTP/1.1 200 OK\r\n", b"A: 1\r\n"),
    "status line": (b"HTTP/1.1 200 ", b"a"),
    "interim": (b"HTTP/1.1 103 A\r\n", b"A: 1\r\n"),
    "chunk line": (CHUNKED + b"1;", b"a"),
    "trailers": (CHUNKED + b"0\r\n", b"A: 1\r\n"),
}


def test_endless(start_proxy: StartProxy, ways: list[str]) -> None:
    """An upstream that goes on and on is cut."""
    with saying() as upstream:
        proxy = start_proxy(upstream.url, *ways)
        before = proxy.peak()
        for upstream.data, upstream.then in ENDLESS.values():
            with suppress(requests.exceptions.RequestException):
                answer = requests.get(f"{proxy.url}/v1/other", timeout=30)
                assert answer.status_code == 502
        assert proxy.peak() - before < 16 << 20


def test_chunks_stay_as_they_are(upstream: Hearing, front: Proxy) -> None:
    """Each chunk is a chunk for the client, too: one of SGLang's takes chunks for events."""
    upstream.answer = lambda heard: CHUNKED + b"1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n"
    with front.connect() as client:
        client.sendall(b"GET /v1/other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = read_all(client)
    assert received.endswith(b"\r\n\r\n1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n")

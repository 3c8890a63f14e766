"""Each field of each API, through the whole proxy, is what `docs/fields.md` says; and a real server
has no field, and no route, of which the docs do not tell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from sglang_cached_addon.admin.routes import ROUTES
from sglang_cached_addon.core.refusals import route_refusal
from sglang_cached_addon.dialects import installed
from tests.conftest import Proxy, cache_status
from tests.e2e.calls import ask, post
from tests.e2e.conftest import StartFront
from tests.fields import BASES, PARAMS, rows
from tests.hearing import Hearing, hearing
from tests.simulator import Simulator
from tests.tables import each
from tests.test_readme import ROOT

ROWS = list(rows())
KINDS = {
    "key": "MISS", "item": "MISS", "out": "HIT", "form": "HIT", "echo": "HIT", "count": "PARTIAL",
    "bypass": "BYPASS",
}  # fmt: skip
"""What comes of a call with a field, behind one without it."""


@pytest.mark.shared
@each("path", BASES)
def test_fields(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """Behind a call without a field, one with it is a hit where the field is not in the key."""
    own = {"call_of": path}
    first = ask(proxy, path, {**BASES[path], **own})
    assert cache_status(first.headers) == "sglang-cached; fwd=miss; stored", first.text
    for row in ROWS:
        if row.path == path:
            answer = post(proxy, path, row.given(**own))
            assert answer.headers["X-Cache"] == KINDS[row.kind], row
            if row.reason:
                assert answer.headers["Cache-Status"].endswith(f"detail={row.reason}"), row


@pytest.mark.shared
def test_null_is_no_stream(simulator: Simulator, proxy: Proxy) -> None:
    """A call whose `stream` is null is answered as the server answers it, and where that takes it
    for no stream, from the cache."""
    for path, kinds in {
        "/v1/chat/completions": ["MISS", "HIT"],
        "/v1/messages": ["HIT", "HIT"],
        "/generate": ["MISS", "MISS"],  # the simulator refuses it, as SGLang does
    }.items():
        own = {"call_of": f"null {path}"}
        ask(proxy, path, {**BASES[path], **own})
        answers = [ask(proxy, path, {**BASES[path], **own, "stream": None}) for _ in range(2)]
        assert [answer.headers["X-Cache"] for answer in answers] == kinds, path
        assert all("json" in answer.headers["Content-Type"] for answer in answers)


REAL = pytest.mark.skipif("SGLANG_URL" not in os.environ, reason="SGLANG_URL names a real server")


@pytest.fixture(scope="module")
def schema(upstream_url: str) -> Any:
    """What a real server says of its own routes."""
    return requests.get(f"{upstream_url}/openapi.json", timeout=60).json()


@REAL
@pytest.mark.one_way
def test_sglang_has_no_other_fields(schema: Any, upstream_url: str, lane: list[str]) -> None:
    """Each field of each API has its row, and so has each sampling parameter: SGLang names those
    that it knows when it refuses one."""
    known = {(row.path, row.name) for row in ROWS}
    for path in {row.path for row in ROWS} & schema["paths"].keys():
        content = schema["paths"][path]["post"]["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        fields = schema["components"]["schemas"][name]["properties"]
        assert {(path, field) for field in fields} <= known
    odd = {"text": "a", PARAMS: {"not_yet_invented": 1}}
    refused = requests.post(f"{upstream_url}/generate", json=odd, timeout=60)
    _, _, expected = refused.json()["error"].partition(", expected one of ")
    params = {row.name for row in ROWS if row.holder == PARAMS}
    assert set() < set(re.findall(r"`(\w+)`", expected)) <= params


def documented() -> Iterator[tuple[str, str, str]]:
    """The methods and paths of what is not cached, and the reasons, as the docs have them."""
    text = (ROOT / "docs/http.md").read_text()
    table = text[text.index("## What is not cached") : text.index("## Who waits for whom")]
    for named, reason in re.findall(r"^\| (.+?) \| `([\w-]+)` \|", table, re.M):
        for methods, path in re.findall(r"`([A-Z,]+) (/[^`]*)`", named):
            for method in methods.split(","):
                yield method, path, reason


PASSED_ON = list(documented())

HEAD = b"HTTP/1.1 201 Created\r\nX-Odd: \xe9\r\nContent-Type: x/odd\r\nContent-Length: 5\r\n\r\n"
BODY = b"\0odd\xff"


@pytest.fixture(scope="module")
def other() -> Iterator[Hearing]:
    """A server that answers all alike."""
    with hearing() as server:
        server.answer = lambda heard: HEAD if heard.method == "HEAD" else HEAD + BODY
        yield server


@pytest.fixture(scope="module")
def before(other: Hearing, start_front: StartFront) -> Proxy:
    """A proxy in front of that."""
    return start_front(other.url)


@each(("method", "path", "reason"), PASSED_ON)
def test_passed_on(method: str, path: str, reason: str, other: Hearing, before: Proxy) -> None:
    """A route that is not cached gets what was sent, and its client what was answered, with the
    reason where it belongs to what generates."""
    other.heard.clear()
    path = re.sub("{.*?}", "x", path)
    body, kind = b"--b\r\nodd\xff\r\n--b--\r\n", "multipart/form-data; boundary=b"
    data = {} if method in ("GET", "HEAD") else {"data": body}
    answer = before.session.request(
        method, f"{before.url}{path}?a=%20b", headers={"Content-Type": kind}, timeout=30, **data
    )
    (heard,) = other.asked(f"{path}?a=%20b")
    assert (heard.method, heard.body) == (method, data.get("data", b""))
    assert heard.fields["content-type"] == kind
    assert (answer.status_code, answer.headers["X-Odd"]) == (201, "\xe9")
    assert answer.content == (b"" if method == "HEAD" else BODY)
    said = f"sglang-cached; fwd=bypass; fwd-status=201; detail={reason}"
    told = (None, None) if reason == "route" else ("BYPASS", said)
    assert (answer.headers.get("X-Cache"), answer.headers.get("Cache-Status")) == told


def test_each_reason_for_a_route_is_told() -> None:
    """The docs have a route for each reason that is about routes."""
    assert {route_refusal(path) for _, path, _ in PASSED_ON} == {r for _, _, r in PASSED_ON}


@REAL
@pytest.mark.one_way
def test_sglang_has_no_other_routes(schema: Any, lane: list[str]) -> None:
    """Each route is cached, or the proxy's own, or has its reason in the docs."""
    cached = {route for route in installed() if "?" not in route[1]}
    known = cached | {(method, path) for method, path, _ in PASSED_ON}
    routes = {
        (method.upper(), path) for path, methods in schema["paths"].items() for method in methods
    }
    assert {route for route in routes if route[1] not in ROUTES} <= known

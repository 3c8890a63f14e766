"""The proxy's own routes."""

from __future__ import annotations

import asyncio
import json
from copy import deepcopy
from itertools import product
from typing import Any

from sglang_cached_addon.admin.access import Caller, RouteAnswer
from sglang_cached_addon.admin.request import Request
from sglang_cached_addon.admin.routes import ROUTES, answer, find
from sglang_cached_addon.catalog import Ambiguous
from sglang_cached_addon.catalog.query import NotFound, Query
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.explaining import Explanation
from sglang_cached_addon.service.runs import Runs
from sglang_cached_addon.store.contract import Unavailable

URL = "http://10.0.0.7:30000"
STATS = {"hits": 1, "cache_file": "/x/cache.jsonl", "shared": {"url": "redis://x", "state": "up"}}
HEALTHY = {"status": "healthy", "sglang_url": URL, "upstream": {"url": URL, "state": "up"}}
HERE = Caller(is_local=True, host="localhost:8000")
AWAY = Caller(is_local=False, host="10.0.0.1:8000")
PAGE = Caller(is_local=False, host="evil.example", origin="null", fetch_site="cross-site")
TOKEN = "s3cret"
BEARER = Caller(is_local=False, host="proxy.lan", authorization=f"Bearer {TOKEN}")


KEY = "ab" * 32


class Stored:
    """A catalog of one entry; and of one whose key begins as that of another."""

    async def entries(self, query: Query) -> bytes:
        return json.dumps({"text": query.text, "limit": query.limit}).encode()

    async def entry(self, prefix: str) -> bytes:
        if prefix == "abcd":
            raise Ambiguous(prefix, [KEY])
        if prefix != "a":
            raise NotFound("no entry")
        return json.dumps({"key": KEY}).encode()


class Telling:
    """What can be told here; `calls` says what was asked for."""

    time = 1000.0

    def __init__(self, error: OSError | None = None) -> None:
        self.calls: list[str] = []
        self.error = error
        self.known = Runs()
        self.known.use("a", 5.0)

    def stats(self) -> dict[str, Any]:
        self.calls.append("stats")
        return deepcopy(STATS)

    def info(self) -> dict[str, Any]:
        self.calls.append("info")
        return {"version": "x"}

    def past(self, after: float) -> dict[str, Any]:
        self.calls.append(f"past {after}")
        return {"points": []}

    def metrics(self) -> RouteAnswer:
        self.calls.append("metrics")
        return RouteAnswer(200, b"{}")

    def health(self) -> dict[str, Any]:
        self.calls.append("health")
        return deepcopy(HEALTHY)

    @property
    def explaining(self) -> Any:
        self.calls.append("explaining")
        return self

    async def explain(self, path: str, body: bytes, fields: Any) -> Explanation:
        return Explanation(Kind.BYPASS, Reason.ROUTE, path)

    @property
    def runs(self) -> Runs:
        self.calls.append("runs")
        return self.known

    @property
    def catalog(self) -> Stored:
        self.calls.append("catalog")
        return Stored()

    def flights(self) -> dict[str, Any]:
        self.calls.append("flights")
        return {"flights": []}

    async def delete(self, prefix: str, *, now: bool) -> dict[str, Any]:
        self.calls.append(f"delete {prefix} {now}")
        return {"deleted": KEY}

    async def clear(self, which: str) -> dict[str, Any]:
        if which not in ("current", "other", "all", "org/model", "0123456789abcdef"):
            raise NotFound(f"no model {which}")
        self.calls.append(f"clear {which}")
        if self.error:
            raise self.error
        return {"cleared": True}


def ask(
    path: str,
    method: str,
    telling: Any,
    caller: Caller = HERE,
    token: str = "",
    body: bytes = b"",
) -> RouteAnswer:
    path = path.format(name="a", key="a") if "{" in path else path
    route = find(path)
    assert route
    path, _, query = path.partition("?")
    request = Request(method, path, query, body)
    return asyncio.run(answer(route, request, caller, token, telling))


def test_table() -> None:
    """Each documented route is there, is as open as it should be, and takes over nothing else."""
    reads = ("GET", "HEAD")
    assert {path: (r.path, r.methods, r.is_private) for path, r in ROUTES.items()} == {
        "/cache": ("/cache", reads, False),
        "/cache/": ("/cache/", reads, False),
        "/cache/history": ("/cache/history", reads, True),
        "/cache/stats": ("/cache/stats", reads, False),
        "/cache/metrics": ("/cache/metrics", reads, False),
        "/cache/info": ("/cache/info", reads, True),
        "/cache/clear": ("/cache/clear", ("POST",), True),
        "/cache/explain": ("/cache/explain", ("POST",), True),
        "/cache/entries": ("/cache/entries", reads, True),
        "/cache/entries/{key}": ("/cache/entries/{key}", (*reads, "DELETE"), True),
        "/cache/flights": ("/cache/flights", reads, True),
        "/cache/runs": ("/cache/runs", reads, True),
        "/cache/runs/{name}": ("/cache/runs/{name}", (*reads, "POST", "DELETE"), True),
        "/cache/runs/{name}/rewind": ("/cache/runs/{name}/rewind", ("POST",), True),
        "/health": ("/health", reads, False),
    }


FOUND = (
    ("/cache/stats", "/cache/stats"), ("/cache/stats?", "/cache/stats"),
    ("/cache/stats?a=b?c", "/cache/stats"), ("/health?x=/cache/clear", "/health"),
    ("/cache/runs/a%b?x", "/cache/runs/{name}"),
    ("/cache/runs/a/rewind", "/cache/runs/{name}/rewind"), ("/cache/runs/a/rewind/", None),
    ("/cache/runs/a/other", None), ("/cache/runs/a/", None),
    ("/cache/stats/", None), ("/cache/statsx", None), ("/Cache/stats", None),
    ("/cache", "/cache"), ("/cache/?x", "/cache/"), ("/cache//", None),
    ("/health_generate", None), ("/generate", None),
    ("/generate?/cache/stats", None), ("//cache/stats", None), ("/v1/cache/stats", None),
    ("", None), ("?", None),
)  # fmt: skip


def test_find() -> None:
    """Ours are found whatever their query, and SGLang's are left alone."""
    for path, found in FOUND:
        route = find(path)
        assert (route.path if route else None) == found, path


ANSWERS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("/cache/stats", "GET", "stats", STATS), ("/cache/stats", "HEAD", "stats", STATS),
    ("/cache/info", "GET", "info", {"version": "x"}),
    ("/cache/info", "HEAD", "info", {"version": "x"}), ("/health", "GET", "health", HEALTHY),
    ("/health", "HEAD", "health", HEALTHY),
    ("/cache/metrics", "GET", "metrics", {}),
    ("/cache/clear", "POST", "clear all", {"cleared": True}),
    ("/cache/stats?now=1", "GET", "stats", STATS),
    ("/cache/history", "GET", "past -inf", {"points": []}),
    ("/cache/history?after=5.5", "GET", "past 5.5", {"points": []}),
    ("/cache/flights", "GET", "flights", {"flights": []}),
    ("/cache/entries?text=a%26b+c&limit=3", "GET", "catalog", {"text": "a&b c", "limit": 3}),
    ("/cache/entries/a", "GET", "catalog", {"key": KEY}),
    ("/cache/entries/a?now=true", "DELETE", "delete a True", {"deleted": KEY}),
    ("/cache/entries/a", "DELETE", "delete a False", {"deleted": KEY}),
)  # fmt: skip


def test_answers() -> None:
    """Each route tells and does what it is for, and nothing else."""
    for path, method, call, body in ANSWERS:
        telling = Telling()
        found = ask(path, method, telling)
        assert (found.status, json.loads(found.body), found.headers) == (200, body, {}), path
        assert telling.calls == [call], path


def test_other_methods() -> None:
    """A wrong method does nothing, and is told the right one: what is cleared is no link."""
    others = ("PUT", "PATCH", "OPTIONS", "TRACE", "get", "")
    for path, caller, token in product(ROUTES, (HERE, AWAY), ("", TOKEN)):
        allowed = ROUTES[path].methods
        for method in (*others, *({"GET", "HEAD", "POST", "DELETE"} - set(allowed))):
            telling = Telling()
            found = ask(path, method, telling, caller, token)
            case = (path, method)
            assert (found.status, telling.calls) == (405, []), case
            assert found.headers == {"Allow": ", ".join(allowed)}, case
            assert json.loads(found.body)["error"]["code"] == 405, case


CLEARED = (
    ("", "all"), ("?", "all"), ("?model=all", "all"), ("?model=current", "current"),
    ("?model=other", "other"), ("?model=org/model", "org/model"),
    ("?model=org%2Fmodel", "org/model"), ("?model=0123456789abcdef", "0123456789abcdef"),
)  # fmt: skip
UNCLEAR = (
    "model", "model=", "=all", "Model=all", "model=current&model=other", "model=all&model=all",
    "model=current&now=1",
    "now=1&model=current", "now=1", "models=current", "model=current&", "&model=current",
    "model=current;x", "model=%61ll", "model==all", "model=all=", "model=all?model=current",
    "model=all#x", "&", "=", "model[]=current",
    "a=" + "x" * 100_000,
    "\ud800=\udc00",
    "model=\x00 &", ")",
)  # fmt: skip
NO_NAMES = (
    "model=others", "model=ALL", "model=current,other", "model= all", "model=\x00", "model=org",
    "model=0123456789ABCDEF", "model=0123456789abcde", "model=0123456789abcdef0",
)  # fmt: skip


def test_what_is_cleared() -> None:
    """What is meant is cleared, and a slip of the pen clears nothing."""
    for query, which in CLEARED:
        telling = Telling()
        assert ask(f"/cache/clear{query}", "POST", telling).status == 200, query
        assert telling.calls == [f"clear {which}"], query
    for query in UNCLEAR:
        telling = Telling()
        found = ask(f"/cache/clear?{query}", "POST", telling)
        error = json.loads(found.body)["error"]
        assert (found.status, error["code"], telling.calls) == (400, 400, []), ascii(query)
        assert "current|other|all|NAME|KEY" in error["message"]
    for query in NO_NAMES:
        telling = Telling()
        found = ask(f"/cache/clear?{query}", "POST", telling)
        assert (found.status, telling.calls) == (404, []), ascii(query)


def test_entries() -> None:
    """What is not understood, or not there, is told apart from a key that several entries have."""
    for path, method, status in (
        ("/cache/entries?limit=0", "GET", 400), ("/cache/entries?x=1", "GET", 400),
        ("/cache/entries?text=a&text=b", "GET", 400), ("/cache/entries/b", "GET", 404),
        ("/cache/entries/a?now=yes", "DELETE", 400), ("/cache/entries/a?x=1", "DELETE", 400),
        ("/cache/entries/abcd", "GET", 409),
    ):  # fmt: skip
        found = ask(path, method, Telling())
        told = json.loads(found.body)
        assert (found.status, told["error"]["code"]) == (status, status), path
        assert told.get("keys") == ([KEY] if status == 409 else None)


def test_page() -> None:
    """The page has nothing of the cache in it; without its slash it is found all the same."""
    telling = Telling()
    for caller in (HERE, AWAY, PAGE):
        found = ask("/cache/", "GET", telling, caller, TOKEN)
        assert (found.status, found.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    found = ask("/cache", "GET", telling)
    assert (found.status, found.headers) == (308, {"Location": "cache/"})
    assert telling.calls == []


def test_history_of_when() -> None:
    """What is no time is told of."""
    for query in ("after=x", "since=1", "after=1&after=2", "after=", "=1", "after"):
        found = ask(f"/cache/history?{query}", "GET", Telling())
        assert (found.status, query) == (400, query)


def test_runs() -> None:
    """Runs are shown, begun behind what is stored, rewound and forgotten; others are not there."""
    telling = Telling()
    run = telling.known.get("a")
    assert run
    for path, method, body, status in (
        ("/cache/runs", "GET", b"", 200),
        ("/cache/runs/a", "GET", b"", 200),
        ("/cache/runs/a/rewind", "POST", b"", 200),
        ("/cache/runs/b", "GET", b"", 404),
        ("/cache/runs/b", "DELETE", b"", 404),
        ("/cache/runs/b/rewind", "POST", b"", 404),
        ("/cache/runs/a@", "GET", b"", 400),
        ("/cache/runs/a", "POST", b"", 400),
        ("/cache/runs/a", "POST", b'{"fresh":1}', 400),
        ("/cache/runs/a", "POST", b'{"fresh":true,"x":1}', 400),
        ("/cache/runs/a", "POST", b'{"fresh":true}', 200),
        ("/cache/runs/b", "POST", b'{"fresh":true}', 200),
        ("/cache/runs/b", "GET", b"", 200),
        ("/cache/runs/b", "DELETE", b"", 200),
        ("/cache/runs/b", "GET", b"", 404),
    ):
        assert ask(path, method, telling, body=body).status == status, (path, method, body)
    assert run.rewinds == 2
    assert run.fresh_since > 0
    told = json.loads(ask("/cache/runs", "GET", telling).body)
    assert told == {"runs": [run.as_json()]}


def test_clear_that_fails() -> None:
    """A full disk does not look like an emptied cache."""
    found = ask("/cache/clear", "POST", Telling(OSError("no space")))
    error = json.loads(found.body)["error"]
    assert (found.status, error["code"], error["message"]) == (500, 500, "no space")


def test_what_is_not_done_now() -> None:
    """What a server that is away keeps from being done may be asked for again."""
    found = ask("/cache/clear", "POST", Telling(Unavailable("redis is away")))
    error = json.loads(found.body)["error"]
    assert (found.status, error["type"], error["message"]) == (503, "Unavailable", "redis is away")


BODIES = {"/cache/explain": b'{"path":"/x","body":{}}'}


def test_who_may_call() -> None:
    """Private routes are for their callers alone; the others for all who reach the proxy."""
    for path, route in ROUTES.items():
        for who, token, may in (
            (HERE, "", True), (AWAY, "", False), (PAGE, "", False), (BEARER, "", False),
            (HERE, TOKEN, False), (AWAY, TOKEN, False), (PAGE, TOKEN, False), (BEARER, TOKEN, True),
        ):  # fmt: skip
            telling = Telling()
            found = ask(path, route.methods[0], telling, who, token, BODIES.get(path, b""))
            is_served = may or not route.is_private
            assert (found.status < 400) == is_served, path
            has_told = is_served and path not in ("/cache", "/cache/")
            assert bool(telling.calls) == has_told, path
    # Before it is read: nobody else finds out what can be cleared.
    assert ask("/cache/clear?x", "POST", Telling(), AWAY).status == 403
    assert ask("/cache/clear?x", "POST", Telling(), AWAY, TOKEN).status == 401


def test_strangers_see_no_places() -> None:
    """Where the upstream is, and where answers are kept, is not told to everybody."""
    for who, token in ((AWAY, ""), (HERE, TOKEN), (AWAY, TOKEN)):
        stats = json.loads(ask("/cache/stats", "GET", Telling(), who, token).body)
        assert stats == {"hits": 1, "cache_file": None, "shared": {"url": None, "state": "up"}}
        health = json.loads(ask("/health", "GET", Telling(), who, token).body)
        upstream = {"url": None, "state": "up"}
        assert health == {"status": "healthy", "sglang_url": None, "upstream": upstream}

"""The proxy's own routes."""

from __future__ import annotations

import asyncio
import json
from copy import deepcopy
from typing import Any

import pytest

from sglang_cached_addon.admin.routes import (
    ROUTES,
    Caller,
    Reply,
    answer,
    find,
    is_relayed,
    refusal,
)

URL = "http://10.0.0.7:30000"
STATS = {"hits": 1, "cache_file": "/x/cache.jsonl", "shared": {"url": "redis://x", "state": "up"}}
HEALTHY = {"status": "healthy", "sglang_url": URL, "upstream": {"url": URL, "state": "up"}}
HERE = Caller(is_local=True, host="localhost:8000")
AWAY = Caller(is_local=False, host="10.0.0.1:8000")
TOKEN = "s3cret"


class Proxy:
    """What the routes see here; `calls` tells what was done."""

    def __init__(self, error: OSError | None = None) -> None:
        self.calls: list[str] = []
        self.error = error

    def stats(self) -> dict[str, Any]:
        self.calls.append("stats")
        return deepcopy(STATS)

    def info(self) -> dict[str, Any]:
        self.calls.append("info")
        return {"version": "x"}

    def health(self) -> dict[str, Any]:
        self.calls.append("health")
        return deepcopy(HEALTHY)

    async def clear(self, which: str) -> dict[str, Any]:
        self.calls.append(f"clear {which}")
        if self.error:
            raise self.error
        return {"cleared": True}


def ask(path: str, method: str, view: Proxy, caller: Caller = HERE, token: str = "") -> Reply:
    route = find(path)
    assert route
    query = path.partition("?")[2]
    return asyncio.run(answer(route, method, query, caller, token, view))


@pytest.mark.parametrize(
    ("path", "methods", "is_private"),
    [
        ("/cache/stats", ("GET", "HEAD"), False),
        ("/cache/info", ("GET", "HEAD"), True),
        ("/cache/clear", ("POST",), True),
        ("/health", ("GET", "HEAD"), False),
    ],
)
def test_table(path: str, methods: tuple[str, ...], is_private: bool) -> None:
    """A documented route would be missing, or open to more than it should be."""
    route = ROUTES[path]
    assert (route.path, route.methods, route.is_private) == (path, methods, is_private)


def test_nothing_else() -> None:
    """A route of SGLang would be taken over unawares."""
    assert set(ROUTES) == {"/cache/stats", "/cache/info", "/cache/clear", "/health"}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/cache/stats", "/cache/stats"),
        ("/cache/stats?", "/cache/stats"),
        ("/cache/stats?a=b?c", "/cache/stats"),
        ("/health?x=/cache/clear", "/health"),
        ("/cache/stats/", None),
        ("/cache/statsx", None),
        ("/Cache/stats", None),
        ("/cache", None),
        ("/cache/", None),
        ("/health_generate", None),
        ("/generate", None),
        ("/generate?/cache/stats", None),
        ("//cache/stats", None),
        ("/v1/cache/stats", None),
        ("", None),
        ("?", None),
    ],
)
def test_find(path: str, found: str | None) -> None:
    """SGLang's answer would be hidden, or ours not be found."""
    route = find(path)
    assert (route.path if route else None) == found


@pytest.mark.parametrize(
    ("path", "method", "call", "body"),
    [
        ("/cache/stats", "GET", "stats", STATS),
        ("/cache/stats", "HEAD", "stats", STATS),
        ("/cache/info", "GET", "info", {"version": "x"}),
        ("/cache/info", "HEAD", "info", {"version": "x"}),
        ("/health", "GET", "health", HEALTHY),
        ("/health", "HEAD", "health", HEALTHY),
        ("/cache/clear", "POST", "clear all", {"cleared": True}),
        ("/cache/stats?now=1", "GET", "stats", STATS),
    ],
)
def test_answers(path: str, method: str, call: str, body: dict[str, Any]) -> None:
    """A route would show or do what another one is for."""
    view = Proxy()
    reply = ask(path, method, view)
    assert (reply.status, json.loads(reply.body), reply.headers) == (200, body, {})
    assert view.calls == [call]


@pytest.mark.parametrize("path", sorted(ROUTES))
@pytest.mark.parametrize("caller", [HERE, AWAY], ids=["here", "away"])
@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", ""])
def test_other_methods(path: str, caller: Caller, token: str, method: str) -> None:
    """A wrong method would do something, or not tell which one is right."""
    view = Proxy()
    reply = ask(path, method, view, caller, token)
    assert reply.status == 405
    assert reply.headers == {"Allow": ", ".join(ROUTES[path].methods)}
    assert json.loads(reply.body)["error"]["code"] == 405
    assert view.calls == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_clear_is_not_a_link(method: str) -> None:
    """Whoever follows a link would empty the cache."""
    view = Proxy()
    reply = ask("/cache/clear", method, view)
    assert (reply.status, reply.headers, view.calls) == (405, {"Allow": "POST"}, [])


# What is cleared


@pytest.mark.parametrize(
    ("query", "which"),
    [
        ("", "all"),
        ("?", "all"),
        ("?model=all", "all"),
        ("?model=current", "current"),
        ("?model=other", "other"),
    ],
)
def test_what_is_cleared(query: str, which: str) -> None:
    """Somebody would clear more than was meant, or less."""
    view = Proxy()
    assert ask(f"/cache/clear{query}", "POST", view).status == 200
    assert view.calls == [f"clear {which}"]


@pytest.mark.parametrize(
    "query",
    [
        "model",
        "model=",
        "=all",
        "model=others",
        "model=ALL",
        "Model=all",
        "model=current,other",
        "model=current&model=other",
        "model=all&model=all",
        "model=current&now=1",
        "now=1&model=current",
        "now=1",
        "models=current",
        "model=current&",
        "&model=current",
        "model=current;x",
        "model=%61ll",
        "model==all",
        "model=all=",
        "model=all?model=current",
        "model=all#x",
        "model= all",
        "&",
        "=",
        "model[]=current",
        "a=" + "x" * 100_000,
        "\ud800=\udc00",
        "model=\x00",
    ],
    ids=ascii,
)
def test_what_cannot_be_cleared(query: str) -> None:
    """A slip of the pen would empty the whole cache."""
    view = Proxy()
    reply = ask(f"/cache/clear?{query}", "POST", view)
    assert reply.status == 400
    error = json.loads(reply.body)["error"]
    assert error["code"] == 400
    assert "current|other|all" in error["message"]
    assert view.calls == []


# Who may call

PRIVATE = sorted(path for path, route in ROUTES.items() if route.is_private)
OPEN = sorted(path for path, route in ROUTES.items() if not route.is_private)


def caller(is_local: bool = True, host: str = "localhost", **fields: str | None) -> Caller:
    return Caller(is_local, host, **fields)  # type: ignore[arg-type]


def bearer(credential: str, **fields: Any) -> Caller:
    return caller(is_local=False, host="proxy.lan", authorization=credential, **fields)


RIGHT = f"Bearer {TOKEN}"
# Caller, and the statuses without a token and with one.
CALLERS: list[tuple[Caller, int, int]] = [
    (caller(), 200, 401),
    (caller(is_local=False), 403, 401),
    (caller(authorization=RIGHT), 200, 200),
    (caller(is_local=False, authorization=RIGHT), 403, 200),
    (caller(is_local=False, host="10.0.0.1"), 403, 401),
    # By what name it was called
    *((caller(host=host), 200, 401) for host in ("localhost:80", "LocalHost", "a.b.localhost:1")),
    *((caller(host=host), 200, 401) for host in ("127.0.0.1", "127.0.0.1:8000", "10.1.2.3:1")),
    *((caller(host=host), 200, 401) for host in ("[::1]", "[::1]:8000", "[FE80::1]", "0.0.0.0")),
    *(
        (caller(host=host), 403, 401)
        for host in (
            "",
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evillocalhost",
            "localhost.",
            "localhost, evil.example",
            "127.0.0.1, evil.example",
            "localhost:80:80",
            "localhost:x",
            "localhost/",
            "localhost#.evil.example",
            "evil.example@localhost",
            "localhost@evil.example",
            "evil.example:x@127.0.0.1",
            " localhost",
            "localhost\n",
            "127.0.0.1\n",
            ":80",
            ":",
            "::1",
            "[::1",
            "::1]",
            "[]",
            "[]:80",
            "[localhost]",
            "[127.0.0.1]",
            "[::1].evil.example",
            "1",
            "2130706433",
            "0x7f.1",
            "127.1",
            "127.0.0.1.",
            "127.0.0.256",
            "\u0661\u0662\u0667.0.0.1",
            "\ud800",
            "\udcff",
        )
    ),
    # From which page
    *((caller(fetch_site=site), 200, 401) for site in ("same-origin", "none")),
    *(
        (caller(fetch_site=site, authorization=RIGHT), 403, 403)
        for site in (
            "cross-site",
            "same-site",
            "",
            "Same-Origin",
            "none, cross-site",
            "x",
            "\ud800",
        )
    ),
    *(
        (caller(host=host, origin=origin, authorization=RIGHT), 200, 200)
        for host, origin in (
            ("localhost", "http://localhost"),
            ("localhost:8000", "http://localhost:8000"),
            ("LOCALHOST:8000", "http://localhost:8000"),
            ("[::1]:8000", "http://[::1]:8000"),
            ("127.0.0.1:8000", "https://127.0.0.1:8000"),
        )
    ),
    *(
        (caller(host=host, origin=origin, authorization=RIGHT), 403, 403)
        for host, origin in (
            ("localhost:8000", "null"),
            ("localhost:8000", ""),
            ("localhost:8000", "localhost:8000"),
            ("localhost:8000", "://localhost:8000"),
            ("localhost:8000", "http://localhost"),
            ("localhost:8000", "http://localhost:8001"),
            ("localhost:8000", "http://127.0.0.1:8000"),
            ("localhost:8000", "http://localhost:8000/"),
            ("localhost:8000", "http://localhost:8000.evil.example"),
            ("localhost:8000", "http://x@localhost:8000"),
            ("localhost:8000", "http://localhost:8000, http://evil.example"),
            ("localhost:8000", "https://evil.example"),
            ("", "http://"),
            ("null", "null"),
            ("localhost", "\ud800://\udfff"),
        )
    ),
    (caller(origin="http://localhost", fetch_site="cross-site"), 403, 403),
    (caller(origin="http://evil.example", fetch_site="same-origin"), 403, 403),
    # With which credential
    (bearer(RIGHT), 403, 200),
    (bearer(RIGHT, origin="https://PROXY.lan", fetch_site="same-origin"), 403, 200),
    (bearer(f"bearer {TOKEN}"), 403, 200),
    (bearer(f"BEARER   {TOKEN} "), 403, 200),
    *(
        (bearer(credential), 403, 401)
        for credential in (
            "",
            " ",
            "Bearer",
            "Bearer ",
            TOKEN,
            f" {RIGHT}",
            f"Bearer\t{TOKEN}",
            f"Bearer{TOKEN}",
            f"Basic {TOKEN}",
            f"Token {TOKEN}",
            f"Bearer {TOKEN.upper()}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Bearer {TOKEN} {TOKEN}",
            f"{RIGHT}, {RIGHT}",
            f"Bearer {TOKEN}\x00",
            f'Bearer "{TOKEN}"',
            "Bearer \ud800",
            "Bearer \udcff\udfff",
            "Bearer sécret",
            "Bearer 😀",
            "\ud800 x",
        )
    ),
]


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize(("who", "bare", "with_token"), CALLERS, ids=ascii)
def test_private(path: str, who: Caller, bare: int, with_token: int) -> None:
    """A page of another site, or anybody on the network, could read or empty the cache; or its
    owner could not."""
    for token, status in (("", bare), (TOKEN, with_token)):
        view = Proxy()
        reply = ask(path, ROUTES[path].methods[0], view, who, token)
        assert (reply.status, bool(view.calls)) == (status, status == 200)
        assert (refusal(ROUTES[path], who, token) is None) == (status == 200)
        assert reply.headers == ({"WWW-Authenticate": "Bearer"} if status == 401 else {})
        if status != 200:
            error = json.loads(reply.body)["error"]
            assert error["code"] == status
            assert path in error["message"]
            assert TOKEN not in reply.body.decode()


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize(
    "who",
    [
        AWAY,
        caller(is_local=False, host=""),
        caller(is_local=False, host="evil.example", origin="null", fetch_site="cross-site"),
        bearer("Bearer wrong"),
    ],
    ids=ascii,
)
def test_open(path: str, token: str, who: Caller) -> None:
    """A monitor on another machine would be locked out."""
    assert ask(path, "GET", Proxy(), who, token).status == 200


@pytest.mark.parametrize(
    ("who", "token", "hint"),
    [
        (AWAY, "", "--admin-token"),
        (caller(is_local=False, host="127.0.0.1"), TOKEN, "Authorization: Bearer"),
        (caller(host="evil.example"), "", "other sites"),
        (caller(origin="http://evil.example"), TOKEN, "other sites"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("path", PRIVATE)
def test_refusals_say_what_to_do(path: str, who: Caller, token: str, hint: str) -> None:
    """Who is locked out would not know why, or what to do."""
    refused = refusal(ROUTES[path], who, token)
    assert refused
    assert hint in json.loads(refused.body)["error"]["message"]


@pytest.mark.parametrize("token", ["sécret", "😀", "\udcff", "\ud800", "a b", "=", "x" * 10_000])
def test_any_token(token: str) -> None:
    """A token that somebody has chosen would lock out everybody, or end in a traceback."""
    for credential, status in ((token, 200), (f"{token}x", 401), ("?", 401), (token[:-1], 401)):
        who = bearer(f"Bearer {credential}")
        assert ask("/cache/info", "GET", Proxy(), who, token).status == status


def test_clear_is_refused_before_it_is_read() -> None:
    """Anybody could find out what the cache can do."""
    assert ask("/cache/clear?x", "POST", Proxy(), AWAY).status == 403
    assert ask("/cache/clear?x", "POST", Proxy(), AWAY, TOKEN).status == 401


def test_clear_that_fails() -> None:
    """A full disk would look like an emptied cache."""
    reply = ask("/cache/clear", "POST", Proxy(OSError("no space")))
    assert reply.status == 500
    error = json.loads(reply.body)["error"]
    assert (error["code"], error["message"]) == (500, "no space")


@pytest.mark.parametrize(("who", "token"), [(AWAY, ""), (HERE, TOKEN), (AWAY, TOKEN)])
def test_strangers_see_no_places(who: Caller, token: str) -> None:
    """Where the upstream is, and where answers are kept, would be told to everybody."""
    stats = json.loads(ask("/cache/stats", "GET", Proxy(), who, token).body)
    assert stats == {"hits": 1, "cache_file": None, "shared": {"url": None, "state": "up"}}
    health = json.loads(ask("/health", "GET", Proxy(), who, token).body)
    upstream = {"url": None, "state": "up"}
    assert health == {"status": "healthy", "sglang_url": None, "upstream": upstream}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (b"forwarded", True),
        (b"x-forwarded-for", True),
        (b"x-forwarded-host", True),
        (b"x-real-ip", True),
        (b"via", True),
        (b"cf-connecting-ip", True),
        (b"x-forwarded", False),
        (b"host", False),
        (b"authorization", False),
    ],
)
def test_is_relayed(name: bytes, found: bool) -> None:
    """Everybody behind a proxy on this machine would be taken for somebody on it, or nobody be."""
    assert is_relayed([b"accept", name]) is found

"""Who may call the proxy's private routes, and what others are told."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.admin.access import Caller, refusal

PATH = "/cache/info"
TOKEN = "s3cret"


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
            "", "evil.example", "evil.example:8000", "localhost.evil.example",
            "127.0.0.1.evil.example", "evillocalhost", "localhost.", "localhost, evil.example",
            "127.0.0.1, evil.example", "localhost:80:80", "localhost:x", "localhost/",
            "localhost#.evil.example", "evil.example@localhost", "localhost@evil.example",
            "evil.example:x@127.0.0.1", " localhost", "localhost\n", "127.0.0.1\n", ":80", ":",
            "::1", "[::1", "::1]", "[]", "[]:80", "[localhost]", "[127.0.0.1]",
            "[::1].evil.example", "1", "2130706433", "0x7f.1", "127.1", "127.0.0.1.", "127.0.0.256",
            "\u0661\u0662\u0667.0.0.1", "\ud800", "\udcff",
        )
    ),
    # From which page
    *((caller(fetch_site=site), 200, 401) for site in ("same-origin", "none")),
    *(
        (caller(fetch_site=site, authorization=RIGHT), 403, 403)
        for site in (
            "cross-site", "same-site", "", "Same-Origin", "none, cross-site", "x", "\ud800",
        )
    ),
    *(
        (caller(host=host, origin=origin, authorization=RIGHT), 200, 200)
        for host, origin in (
            ("localhost", "http://localhost"), ("localhost:8000", "http://localhost:8000"),
            ("LOCALHOST:8000", "http://localhost:8000"), ("[::1]:8000", "http://[::1]:8000"),
            ("127.0.0.1:8000", "https://127.0.0.1:8000"),
        )
    ),
    *(
        (caller(host=host, origin=origin, authorization=RIGHT), 403, 403)
        for host, origin in (
            ("localhost:8000", "null"), ("localhost:8000", ""),
            ("localhost:8000", "localhost:8000"), ("localhost:8000", "://localhost:8000"),
            ("localhost:8000", "http://localhost"), ("localhost:8000", "http://localhost:8001"),
            ("localhost:8000", "http://127.0.0.1:8000"),
            ("localhost:8000", "http://localhost:8000/"),
            ("localhost:8000", "http://localhost:8000.evil.example"),
            ("localhost:8000", "http://x@localhost:8000"),
            ("localhost:8000", "http://localhost:8000, http://evil.example"),
            ("localhost:8000", "https://evil.example"), ("", "http://"), ("null", "null"),
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
            "", " ", "Bearer", "Bearer ", TOKEN, f" {RIGHT}", f"Bearer\t{TOKEN}", f"Bearer{TOKEN}",
            f"Basic {TOKEN}", f"Token {TOKEN}", f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN} {TOKEN}", f"{RIGHT}, {RIGHT}",
            f"Bearer {TOKEN}\x00", f'Bearer "{TOKEN}"', "Bearer \ud800", "Bearer \udcff\udfff",
            "Bearer sécret", "Bearer 😀", "\ud800 x",
        )
    ),
]  # fmt: skip


def test_refusal() -> None:
    """No page of another site and nobody on the network can read or empty the cache; its owner
    can."""
    for who, bare, with_token in CALLERS:
        for token, status in (("", bare), (TOKEN, with_token)):
            case = ascii((who, token))
            refused = refusal(PATH, who, token)
            assert (refused.status if refused else 200) == status, case
            if refused:
                wanted = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
                assert refused.headers == wanted, case
                error = json.loads(refused.body)["error"]
                assert error["code"] == status, case
                assert PATH in error["message"], case
                assert TOKEN not in refused.body.decode(), case


WORDS = (
    (caller(is_local=False, host="10.0.0.1:8000"), "", "--admin-token"),
    (caller(is_local=False, host="127.0.0.1"), TOKEN, "Authorization: Bearer"),
    (caller(host="evil.example"), "", "other sites"),
    (caller(origin="http://evil.example"), TOKEN, "other sites"),
)


def test_refusals_say_what_to_do() -> None:
    """Who is locked out is told why, and what to do."""
    for who, token, words in WORDS:
        refused = refusal(PATH, who, token)
        assert refused
        assert words in json.loads(refused.body)["error"]["message"], who


def test_any_token() -> None:
    """Whatever token somebody has chosen lets its owner in, and nobody else."""
    for token in ("sécret", "😀", "\udcff", "\ud800", "a b", "=", "x" * 10_000):
        for credential, status in ((token, 200), (f"{token}x", 401), ("?", 401), (token[:-1], 401)):
            refused = refusal(PATH, bearer(f"Bearer {credential}"), token)
            assert (refused.status if refused else 200) == status, ascii(token)

"""What is counted of answers."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.cli.tally import MOST_FAILED, Tally, is_denied, told
from sglang_cached_addon.wire.connection import WholeResponse
from tests.tables import each

NATIVE = {"text": "a", "meta_info": {"completion_tokens": 3}}
CHAT = {"choices": [{"index": 0}, {"index": 1}], "usage": {"completion_tokens": 7}}


def answer(body: Any, said: str = "", status: int = 200, **headers: str) -> WholeResponse:
    """An answer; `said` is what `X-Cache` and the rest of `Cache-Status` say."""
    kind, _, rest = said.partition(" ")
    fields = {"X-Cache": kind, "Cache-Status": f"sglang-cached; {rest}"} if said else {}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return WholeResponse(status, tuple((n.encode(), v.encode()) for n, v in fields.items()), raw, 1)


def stream(*events: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in events) + b"data: [DONE]"


EVENTS = {"Content_Type": "text/event-stream; charset=utf-8"}

TAKEN: dict[str, tuple[WholeResponse, dict[str, Any]]] = {
    "a hit": (answer(CHAT, "HIT hit"), {"hits": 1, "samples": 2, "tokens": 7}),
    "a miss": (
        answer(NATIVE, 'MISS fwd=miss; stored; key="aa"'),
        {"misses": 1, "samples": 1, "generated": 1, "tokens": 3},
    ),
    "a list": (
        answer([NATIVE, NATIVE], "MISS fwd=miss; stored"),
        {"misses": 1, "samples": 2, "generated": 2, "tokens": 6},
    ),
    "a partial hit": (
        answer([NATIVE] * 3, 'PARTIAL fwd=partial; stored; detail="1 of 3 stored"'),
        {"partial_hits": 1, "samples": 3, "generated": 2, "tokens": 9},
    ),
    "collapsed": (
        answer(NATIVE, "COLLAPSED fwd=miss; collapsed; stored"),
        {"collapsed": 1, "samples": 1, "tokens": 3},
    ),
    "not stored": (
        answer(NATIVE, "MISS fwd=miss; detail=abort"),
        {"misses": 1, "samples": 1, "generated": 1, "tokens": 3, "not_stored": {"abort": 1}},
    ),
    "partly, and not stored": (
        answer(NATIVE, 'PARTIAL fwd=partial; detail="0 of 1 stored, disk"'),
        {"partial_hits": 1, "samples": 1, "generated": 1, "tokens": 3, "not_stored": {"disk": 1}},
    ),
    "a bypass": (
        answer(NATIVE, "BYPASS fwd=bypass; detail=http-1.0"),
        {"bypasses": 1, "samples": 1, "generated": 1, "tokens": 3, "not_stored": {"http-1.0": 1}},
    ),
    "another route": (answer({}), {"bypasses": 1, "not_stored": {"route": 1}}),
    "no JSON": (answer(b"text", "HIT hit"), {"hits": 1}),
    "a chat's stream": (
        answer(
            stream({"choices": [{"index": 0}]}, {"choices": [{"index": 1}]},
                   {"choices": [], "usage": {"completion_tokens": 5}}),
            "MISS fwd=miss", **EVENTS,
        ),
        {"misses": 1, "samples": 2, "generated": 2, "tokens": 5},
    ),
    "a native stream": (
        answer(stream({**NATIVE, "meta_info": {"completion_tokens": 1}}, NATIVE), "HIT hit",
               **EVENTS),
        {"hits": 1, "samples": 1, "tokens": 3},
    ),
}  # fmt: skip


@each("case", TAKEN)
def test_take(case: str) -> None:
    """It is counted what an answer was to the cache, and what is in it."""
    tally = Tally()
    tally.take(TAKEN[case][0])
    expected = {**Tally().as_json(), "sent": 1, **TAKEN[case][1]}
    assert tally.as_json() == expected
    assert tally.is_whole


def test_denied() -> None:
    """A call that the cache denied is no failure, but not all was answered."""
    tally = Tally()
    tally.take(answer({}, "DENIED detail=offline; key=aa", 504))
    tally.take(answer({}, 'DENIED detail="offline"', 504))
    tally.take(answer({}, "DENIED detail=only-if-cached", 504))
    assert tally.as_json()["denied"] == {"offline": 2, "only-if-cached": 1}
    assert (tally.sent, tally.failures, tally.is_whole) == (3, {}, False)
    assert not is_denied(answer({}, "MISS fwd=miss", 504))


def test_failures() -> None:
    """Failures are counted by what was said, and the first of them are listed."""
    tally = Tally()
    for number in range(MOST_FAILED + 9):
        tally.fail(number, "x" if number else "", "status 500")
    assert (tally.sent, tally.failures) == (MOST_FAILED + 9, {"status 500": MOST_FAILED + 9})
    assert tally.failed[:2] == [
        {"line": 0, "custom_id": None, "why": "status 500"},
        {"line": 1, "custom_id": "x", "why": "status 500"},
    ]
    assert len(tally.failed) == MOST_FAILED
    assert not tally.is_whole
    assert not Tally(stopped="interrupted").is_whole


TOLD: dict[str, tuple[Any, str]] = {
    "as OpenAI says it": ({"error": {"message": "too long"}}, "status 400: too long"),
    "as SGLang says it": ({"message": "too long"}, "status 400: too long"),
    "a text": ({"error": "bad"}, "status 400: bad"),
    "nothing": ([], "status 400"),
    "no JSON": (b"x", "status 400"),
}


@each("case", TOLD)
def test_told(case: str) -> None:
    """A failure is told as the server has put it."""
    body, expected = TOLD[case]
    assert told(answer(body, status=400)) == expected

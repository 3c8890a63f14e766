"""What the cache has said, read from header fields."""

from __future__ import annotations

from sglang_cached_addon.core.cache_status import in_words
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Reason
from tests.tables import each

KEY = bytes(range(32))


@each(
    ("outcome", "words"),
    [
        (Outcome(Kind.HIT, 1, 1, key=KEY, oldest=40.0),
         ["HIT", "60 s old", f"key {KEY[:16].hex()}"]),
        (Outcome(Kind.HIT, 1, 1, places=b"3-4", detail="cut from 100 tokens", oldest=100.0),
         ["HIT", "cut from 100 tokens", "0 s old", "samples 3-4"]),
        (Outcome(Kind.MISS), ["MISS", "stored now"]),
        (Outcome(Kind.MISS, status=500, reason=Reason.ERROR),
         ["MISS", "the server answered 500", "error"]),
        (Outcome(Kind.PARTIAL, 1, 3, reason=Reason.ABORT),
         ["PARTIAL", "1 of 3 stored, abort"]),
        (Outcome(Kind.COLLAPSED), ["COLLAPSED"]),
        (Outcome(Kind.BYPASS, reason=Reason.MEDIA), ["BYPASS", "media-by-reference"]),
    ],
)  # fmt: skip
def test_outcomes(outcome: Outcome, words: list[str]) -> None:
    """All that an outcome has written into the header fields is told."""
    assert in_words(dict(outcome.headers(100.0))) == words


def test_other_caches() -> None:
    """What another cache on the way has said is left out, and so is an answer without ours."""
    theirs = 'front; hit; detail="a, sglang-cached; hit"'
    assert in_words({"X-Cache": "HIT", "Cache-Status": theirs}) == []
    assert in_words({"Cache-Status": "sglang-cached; hit"}) == []
    assert in_words({}) == []
    both = f"{theirs}, sglang-cached; fwd=miss; stored"
    assert in_words({"X-Cache": "MISS", "Cache-Status": both}) == ["MISS", "stored now"]

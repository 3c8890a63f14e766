"""What people read of a request's outcome in mitmproxy."""

from __future__ import annotations

from mitmproxy.utils import emoji

from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.proxy import verdicts
from tests.tables import each

KEY = bytes(range(32))
NAMED = KEY[:16].hex()


@each(
    ("outcome", "fetches", "run", "text"),
    [
        (Outcome(Kind.HIT, 1, 1, key=KEY), (), "", f"hit 1/1, key {NAMED}"),
        (Outcome(Kind.HIT, 2, 2, detail="greedy"), (), "r", "hit 2/2 (greedy), run r"),
        (Outcome(Kind.PARTIAL, 1, 3, key=KEY), ("me.1", "you.2"), "r",
         f"partial 1/3, fetch me.1, waited for fetch you.2, key {NAMED}, run r"),
        (Outcome(Kind.COLLAPSED, 0, 1), ("me2.1",), "",
         "collapsed 0/1, waited for fetch me2.1"),
        (Outcome(Kind.MISS, 0, 20), tuple(f"me.{k}" for k in range(20)), "",
         "miss 0/20, " + "".join(f"fetch me.{k}, " for k in range(8)) + "12 more fetches"),
        (Outcome(Kind.BYPASS, reason=Reason.QUERY), (), "", "bypass (query)"),
    ],
)  # fmt: skip
def test_comment(outcome: Outcome, fetches: tuple[str, ...], run: str, text: str) -> None:
    """The verdict, what was had and wanted, why, by which fetches, the key and the run."""
    assert verdicts.comment(outcome, b"me", fetches, run) == text


def test_waiting() -> None:
    """Who waits is told for what."""
    text = "not answered yet, waited for fetch you.2, fetch me.1"
    assert verdicts.waiting(b"me", ("you.2", "me.1")) == text


def test_markers() -> None:
    """Each outcome has a marker of its own, which mitmproxy knows."""
    markers = [*verdicts.MARKERS.values(), verdicts.FETCH, verdicts.QUESTION]
    assert verdicts.MARKERS.keys() == set(Kind)
    assert len(set(markers)) == len(markers)
    assert set(markers) <= emoji.emoji.keys()

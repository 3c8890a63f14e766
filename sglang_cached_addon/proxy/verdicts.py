"""What became of a request, as people see it in mitmproxy: a comment, and a marker for its flow."""

from __future__ import annotations

from collections.abc import Iterable

from sglang_cached_addon.core import request_ids
from sglang_cached_addon.core.outcome import SHOWN, Kind, Outcome

MARKERS = {
    Kind.HIT: ":green_circle:",
    Kind.PARTIAL: ":yellow_circle:",
    Kind.MISS: ":large_blue_circle:",
    Kind.COLLAPSED: ":link:",
    Kind.BYPASS: ":white_circle:",
    Kind.DENIED: ":no_entry:",
}
"""The markers of clients' flows."""

FETCH, QUESTION = ":outbox_tray:", ":satellite:"
"""Those of what upstream is asked."""


MOST_FETCHES = 8
"""How many fetches a comment names: a long list has one for each portion."""


def comment(outcome: Outcome, request: bytes, fetches: Iterable[str], run: str) -> str:
    """The comment on a client's flow; `fetches` were begun for its request, or waited for."""
    verdict = str(outcome.kind)
    if outcome.want:
        verdict += f" {outcome.have}/{outcome.want}"
    if detail := outcome.reason or outcome.detail:
        verdict += f" ({detail})"
    named = [*_named(request, fetches)]
    if outcome.key:
        named.append(f"key {outcome.key[:SHOWN].hex()}")
    if run:
        named.append(f"run {run}")
    return ", ".join([verdict, *named])


def waiting(request: bytes, fetches: Iterable[str]) -> str:
    """The comment on a client's flow that is not answered yet."""
    return ", ".join(["not answered yet", *_named(request, fetches)])


def _named(request: bytes, fetches: Iterable[str]) -> list[str]:
    all_of_them = list(fetches)
    named = [
        f"{'fetch' if request_ids.is_for(fetch, request) else 'waited for fetch'} {fetch}"
        for fetch in all_of_them[:MOST_FETCHES]
    ]
    left_out = len(all_of_them) - MOST_FETCHES
    return [*named, f"{left_out} more fetches"] if left_out > 0 else named

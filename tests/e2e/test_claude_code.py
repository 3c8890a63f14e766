"""A conversation of Claude Code that is repeated asks the server nothing, against the simulator or
a real server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.conftest import Proxy, StartProxy
from tests.e2e.claude_code import Json, Session
from tests.e2e.programs import IS_REAL, all_hits, has_thoughts
from tests.e2e.test_sglang import prompt

Start = Callable[..., Session]

# A tiny model has a small context.
SMALL: Json = {"tools": 4, "tokens": 8} if IS_REAL else {}

TURNS = 4
"""Calls that have a system, the title's being one of them."""


@pytest.fixture
def start(upstream_url: str) -> Start:
    """Starts sessions that ask the server for what it has."""
    return partial(Session, thinks=has_thoughts(upstream_url), **SMALL)


def test_twice(start: Start, front: Proxy) -> None:
    """All that it asks is answered from the cache the second time, in a session with other ids,
    with the same answers: what it appends of them to the next call has the same ids."""
    repeat(front, partial(start, front.url, prompt("Fix the bug."), has_billing=False))


def test_with_its_rule(start: Start, start_proxy: StartProxy, upstream_url: str) -> None:
    """So it is, with the rule that is named after it, where the line about billing is another one
    in each call."""
    front = start_proxy(upstream_url, "--ignore", "claude-code")
    repeat(front, partial(start, front.url, prompt("Fix the bug.")))


def test_without_its_rule(start: Start, front: Proxy) -> None:
    """Nothing is left out of a key by itself: that line makes other calls of those that have it,
    and of no others."""
    first, again = (start(front.url, task) for task in [prompt("Fix the bug.")] * 2)
    first.run()
    before = front.stats()
    again.run()
    after = front.stats()
    assert after["misses"] - before["misses"] == TURNS
    assert after["hits"] - before["hits"] == 1 + len(again.counts)


def repeat(front: Proxy, start: Start) -> None:
    """Holds two sessions, of which the second is to be the first one, and asks upstream nothing."""
    first, again = start(), start()
    first.run()
    with all_hits(front, len(first.heard) + len(first.counts), passed=1):
        again.run()
    assert (again.heard, again.counts) == (first.heard, first.counts)

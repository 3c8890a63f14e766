"""A conversation of Claude Code that is repeated asks the server nothing, against the simulator or
a real server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.conftest import Proxy
from tests.e2e.claude_code import Json, Session
from tests.e2e.programs import IS_REAL, all_hits, has_thoughts
from tests.e2e.test_sglang import prompt

# A tiny model has a small context.
SMALL: Json = {"tools": 4, "tokens": 8} if IS_REAL else {}


Start = Callable[..., Session]

TURNS = 4
"""Calls that have a system, the title's being one of them."""


@pytest.fixture
def start(front: Proxy, upstream_url: str) -> Start:
    return partial(Session, front.url, thinks=has_thoughts(upstream_url), **SMALL)


def test_twice(start: Start, front: Proxy) -> None:
    """All that it asks is answered from the cache the second time, in a session with other ids,
    with the same answers: what it appends of them to the next call has the same ids."""
    task = prompt("Fix the bug.")
    first, again = (start(task, has_billing=False) for _ in range(2))
    first.run()
    with all_hits(front, len(first.heard) + len(first.counts), passed=1):
        again.run()
    assert (again.heard, again.counts) == (first.heard, first.counts)


def test_a_line_that_changes(start: Start, front: Proxy) -> None:
    """Nothing is left out of a key by itself: the line about billing, which is another one in each
    call, makes other calls of those that have it, and of no others."""
    task = prompt("Fix the bug.")
    first, again = (start(task) for _ in range(2))
    first.run()
    before = front.stats()
    again.run()
    after = front.stats()
    assert after["misses"] - before["misses"] == TURNS
    assert after["hits"] - before["hits"] == 1 + len(again.counts)

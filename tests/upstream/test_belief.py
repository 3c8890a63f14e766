"""How long upstream's last word counts: a table of what happens and what may be given then."""

from __future__ import annotations

import pytest

from sglang_cached_addon.upstream.belief import Belief, Trust
from tests.tables import each

BELIEVED, WAKING, UNKNOWN = Trust
INTERVAL = 5.0

# What happens, each at a time; then times, and what counts there.
Steps = list[tuple[str, float]]
STORIES: dict[str, tuple[bool, Steps, dict[float, Trust]]] = {
    "nobody has said anything": (False, [], {0.0: UNKNOWN, 1e6: UNKNOWN}),
    "an earlier process knows": (True, [], {0.0: BELIEVED}),
    "an earlier process knows, and it is asked": (
        True, [("wake", 0.0)], {0.0: WAKING, 0.24: WAKING, 0.25: BELIEVED, 1e6: BELIEVED},
    ),
    "it has said so": (False, [("confirmed", 0.0)], {0.0: BELIEVED, 4.9: BELIEVED, 1e6: BELIEVED}),
    "it says so after a pause": (
        True, [("wake", 0.0), ("confirmed", 0.1)], {0.1: BELIEVED, 0.2: BELIEVED},
    ),
    "it is silent": (False, [("confirmed", 0.0), ("silent", 3.0)], {3.0: BELIEVED, 1e6: BELIEVED}),
    "it refuses to say": (
        False, [("confirmed", 0.0), ("refused", 3.0)], {4.9: BELIEVED, 5.0: UNKNOWN},
    ),
    "it refuses to say, later": (
        False, [("confirmed", 0.0), ("refused", 300.0)], {299.0: BELIEVED, 300.0: UNKNOWN},
    ),
    "it refuses, and then says so": (
        False, [("confirmed", 0.0), ("refused", 3.0), ("confirmed", 4.0)], {1e6: BELIEVED},
    ),
    "something shows that it is another one": (
        False, [("confirmed", 0.0), ("doubted", 3.0)], {2.9: BELIEVED, 3.0: UNKNOWN, 1e6: UNKNOWN},
    ),
    "it says who it is by now": (
        False, [("confirmed", 0.0), ("doubted", 3.0), ("confirmed", 3.1)], {3.1: BELIEVED},
    ),
    "it says something else": (False, [("confirmed", 0.0), ("nameless", 3.0)], {3.0: UNKNOWN}),
    "it says something else after a pause": (
        True, [("wake", 0.0), ("nameless", 0.1)], {0.1: UNKNOWN},
    ),
}  # fmt: skip


@each("story", STORIES)
def test_what_counts(story: str) -> None:
    """What was said counts until something else is said, and after a pause upstream gets a moment
    to say it."""
    is_known, steps, expected = STORIES[story]
    belief = Belief(INTERVAL, is_known=is_known)
    for what, at in steps:
        getattr(belief, what)(at)
    assert {at: belief.trust(at) for at in expected} == expected


def test_when_it_is_asked() -> None:
    """Upstream is asked before its word is older than the interval, and soon where it was silent;
    calls keep it so, and ten minutes after the last one it is left alone."""
    belief = Belief(INTERVAL, is_known=False)
    assert belief.is_pausing(0.0)
    belief.call(0.0)
    belief.wake(0.0)
    assert belief.ask_at == 0.0
    belief.asking(0.0)
    assert belief.ask_at == 3.0
    belief.confirmed(0.0)
    assert belief.ask_at == 3.0
    assert not belief.is_old(5.0)
    assert belief.is_old(5.1)
    belief.silent(4.0)
    assert belief.ask_at == 5.0
    assert not belief.is_pausing(600.0)
    assert belief.is_pausing(600.1)
    belief.call(600.2)
    assert not belief.is_pausing(600.2)


def test_how_long_a_call_waits() -> None:
    """No call that has an answer waits for longer than a quarter of a second."""
    belief = Belief(INTERVAL, is_known=True)
    assert belief.patience(0.0) == 0.0
    belief.wake(10.0)
    assert belief.patience(10.0) == 0.25
    assert belief.patience(10.2) == pytest.approx(0.05)
    assert belief.patience(11.0) == 0.0

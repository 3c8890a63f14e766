"""The line of the log about a request."""

from __future__ import annotations

import json

from sglang_cached_addon.core.log_line import AsJson, Ended
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Reason
from tests.tables import each

AT, TIME = 1893553445.678, "2030-01-02T03:04:05.678+00:00"
KEY, PARTIAL = bytes(range(32)), Kind.PARTIAL
NOTHING = dict.fromkeys(("reason", "have", "want", "key", "run", "status", "bytes"))


@each(
    ("ended", "told"),
    [
        (
            Ended("/x", Outcome(Kind.BYPASS, reason=Reason.ROUTE), 0.25),
            {"path": "/x", "outcome": "bypass", "reason": "route"},
        ),
        (
            Ended("/g?a=s3cret", Outcome(PARTIAL, 1, 3, key=KEY), 0.25, b"i", "r", 200, 9),
            {
                "path": "/g", "id": "i", "outcome": "partial", "have": 1, "want": 3,
                "key": KEY[:16].hex(), "run": "r", "status": 200, "bytes": 9,
            },
        ),
        (
            Ended("/g\n\x1b\x85", Outcome(Kind.MISS, 0, 1, Reason.CUT), 0.25),
            {
                "path": r"/g\n\x1b\x85", "outcome": "miss", "have": 0, "want": 1, "reason": "cut",
            },
        ),
    ],
)  # fmt: skip
def test_json(ended: Ended, told: dict[str, object]) -> None:
    """All members are there, each time, in one printable line; a path has no query."""
    line = str(AsJson(ended, AT, "d"))
    assert line.isprintable()
    assert json.loads(line) == {
        "time": TIME, "seconds": 0.25, "id": "", "dialect": "d", **NOTHING, **told,
    }  # fmt: skip
    assert str(ended) == ended.outcome.line(str(told["path"]), 0.25)

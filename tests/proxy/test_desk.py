"""Where calls are handed in, before, while and after the cache is open."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest

from sglang_cached_addon.core.call_head import CallHead
from sglang_cached_addon.core.log_line import Ended
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.proxy import desk
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.service.asking import Ask
from sglang_cached_addon.service.findings import Bypass
from sglang_cached_addon.settings import OPTIONS, Settings
from tests.tables import each


def settings(**more: object) -> Settings:
    values = {option.name: option.default for option in OPTIONS}
    return Settings.parse({**values, **more})


def test_without_a_cache() -> None:
    """A call is passed on where no cache is open."""
    answer = Desk().receive(Ask(CallHead("POST", "/generate"), b"{}", ()))
    assert isinstance(answer, Bypass)


@each("form", ["text", "json"])
def test_log(form: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line for each request, without control characters or queries; none where that is wanted.
    It is counted all the same."""
    one = Desk()
    caplog.clear()
    caplog.set_level(logging.INFO)
    for quiet in (False, True):
        one.settings = settings(sglang_quiet=quiet, sglang_log_format=form)
        for path in ("/generate?api_key=s3cret\n", "/generate", "/\x1b[2J\u2028\x7f"):
            one.log(Ended(path, Outcome(Kind.HIT, 1, 1), 0.25, b"r1", "a", 200, 12))
    assert len(caplog.messages) == 3
    assert all(line.isprintable() and "s3cret" not in line for line in caplog.messages)
    counts = {name: sum(of.counts) for (name, _), of in one.timings.answers.items()}
    assert {name: count for name, count in counts.items() if count} == {
        "sglang-generate": 2, "other": 4,
    }  # fmt: skip
    if form == "text":
        assert caplog.messages[1].startswith("[Cache hit] /generate 1/1 ")
    else:
        line = json.loads(caplog.messages[1])
        assert datetime.fromisoformat(line.pop("time")).tzinfo
        assert line.pop("seconds") == 0.25
        assert line == {
            "id": "r1", "path": "/generate", "dialect": "sglang-generate", "outcome": "hit",
            "reason": None, "have": 1, "want": 1, "key": None, "run": "a", "status": 200,
            "bytes": 12,
        }  # fmt: skip
        assert [json.loads(line)["dialect"] for line in caplog.messages[::2]] == [None, None]


class Unwritten(Outcome):
    """Nobody wants to read of it."""

    def line(self, path: str, seconds: float) -> str:
        raise AssertionError(path)


def test_lines_that_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is made for those who show it, and for nobody else."""
    shown = logging.StreamHandler(lines := io.StringIO())
    monkeypatch.setattr(desk.requests, "propagate", False)
    monkeypatch.setattr(desk.requests, "handlers", [shown])
    desk.requests.setLevel(logging.INFO)
    try:
        one = Desk()
        one.settings = settings()
        one.log(Ended("/generate", Outcome(Kind.HIT, 1, 1), 0.25))
        shown.setLevel(logging.ERROR)
        one.log(Ended("/generate", Unwritten(Kind.HIT, 1, 1), 0.25))
    finally:
        desk.requests.setLevel(logging.NOTSET)
    assert lines.getvalue().startswith("[Cache hit] /generate 1/1 ")

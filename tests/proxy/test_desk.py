"""Where calls are handed in, before, while and after the cache is open."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime

import pytest

from sglang_cached_addon.core.call_head import CallHead
from sglang_cached_addon.core.outcome import Kind, Outcome
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
    desk = Desk()
    caplog.clear()
    caplog.set_level(logging.INFO)
    for quiet in (False, True):
        desk.settings = settings(sglang_quiet=quiet, sglang_log_format=form)
        for path in ("/generate?api_key=s3cret\n", "/generate", "/\x1b[2J\u2028\x7f"):
            began = time.monotonic()
            desk.log(path, Outcome(Kind.HIT, 1, 1), began, b"r1", "a", 200, 12)
    assert len(caplog.messages) == 3
    assert all(line.isprintable() and "s3cret" not in line for line in caplog.messages)
    counts = {name: sum(of.counts) for (name, _), of in desk.timings.answers.items()}
    assert {name: count for name, count in counts.items() if count} == {
        "sglang-generate": 2, "other": 4,
    }  # fmt: skip
    if form == "text":
        assert caplog.messages[1].startswith("[Cache hit] /generate 1/1 ")
    else:
        line = json.loads(caplog.messages[1])
        assert datetime.fromisoformat(line.pop("time")).tzinfo
        assert 0 <= line.pop("seconds") < 60
        assert line == {
            "id": "r1", "path": "/generate", "dialect": "sglang-generate", "outcome": "hit",
            "reason": None, "have": 1, "want": 1, "key": None, "run": "a", "status": 200,
            "bytes": 12,
        }  # fmt: skip
        assert [json.loads(line)["dialect"] for line in caplog.messages[::2]] == [None, None]

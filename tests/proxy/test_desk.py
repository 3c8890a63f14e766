"""Where calls are handed in, before, while and after the cache is open."""

from __future__ import annotations

import logging
import time

import pytest

from sglang_cached_addon.core.call_head import CallHead
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.service.asking import Ask
from sglang_cached_addon.service.findings import Bypass
from sglang_cached_addon.settings import OPTIONS, Settings


def settings(**more: object) -> Settings:
    values = {option.name: option.default for option in OPTIONS}
    return Settings.parse({**values, **more})


def test_without_a_cache() -> None:
    """A call is passed on where no cache is open."""
    answer = Desk().receive(Ask(CallHead("POST", "/generate"), b"{}", ()))
    assert isinstance(answer, Bypass)


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each call, without control characters or queries; none where that is wanted."""
    desk = Desk()
    caplog.set_level(logging.INFO)
    for quiet in (False, True):
        desk.settings = settings(sglang_quiet=quiet)
        desk.log("/generate?api_key=s3cret\n", Outcome(Kind.HIT, 1, 1), time.monotonic())
    (line,) = caplog.messages
    assert line.startswith("[Cache hit] /generate")
    assert "s3cret" not in line
    assert "\n" not in line

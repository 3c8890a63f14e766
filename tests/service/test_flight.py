"""A fetch as those see it who wait for it."""

from __future__ import annotations

from dataclasses import replace

from sglang_cached_addon.service.flight import Errand, Flight


def test_id() -> None:
    """A fetch has the id of its request, if that has one."""
    errand = Errand("a.1", "sglang-generate", "/generate", "", 0.0, 1, "")
    assert Flight([b"key"], errand=errand).id == "a.1"
    assert Flight([b"key"], errand=replace(errand, id=None)).id == ""
    assert Flight([b"key"]).id == ""

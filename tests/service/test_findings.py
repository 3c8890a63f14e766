"""The values that a call comes to."""

from __future__ import annotations

from sglang_cached_addon.service.findings import model_of


def test_model_of() -> None:
    """A body names its model by a text, or it names none."""
    for body, model in (({"model": "m"}, "m"), ({}, ""), ({"model": 1}, ""), ({"model": None}, "")):
        assert model_of(body) == model

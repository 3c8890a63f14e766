"""The shape of a plugin."""

from __future__ import annotations

from sglang_cached_addon.dialects import installed
from sglang_cached_addon.dialects.base import Dialect


def test_ours_are_dialects() -> None:
    """Each installed dialect has all that a dialect must have."""
    members = [name for name in vars(Dialect) if not name.startswith("_")]
    assert "read" in members
    for dialect in set(installed().values()):
        assert all(hasattr(dialect, name) for name in members), dialect.name

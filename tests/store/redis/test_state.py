"""What is known of others outlives the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.redis import SharedStore

ODD_STATES = [
    {"shared": []},
    {"shared": {"clears": 1, "replaced": ""}},
    {"shared": {"clears": {"all": "2"}, "replaced": ""}},
    {"shared": {"clears": {"odd": 2}, "replaced": ""}},
    {"shared": {"clears": {}, "replaced": None}},
    {"epochs": 7},
    {"epochs": {"last": "1", "floor": 0, "models": {}, "adapters": {}}},
]


def test_a_state_that_makes_no_sense(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A document that nobody wrote is moved aside, and the log says so."""
    for number, document in enumerate(ODD_STATES):
        caplog.clear()
        local = DiskStore(tmp_path / f"{number}")
        local.state.save(document)
        store = SharedStore("redis://127.0.0.1:1/0", local)
        assert store.state.load() == {}, document
        assert "moved to state.json.broken" in caplog.text, document
        store.close()

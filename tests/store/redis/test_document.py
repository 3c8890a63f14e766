"""What is known of others outlives the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.redis import SharedStore
from sglang_cached_addon.store.redis.document import Heard, SharedDocument
from sglang_cached_addon.store.state import StateFile

ODD_STATES = [
    {"shared": []},
    {"shared": {"clears": 1, "replaced": ""}},
    {"shared": {"clears": {"all": "2"}, "replaced": ""}},
    {"shared": {"clears": {"odd": 2}, "replaced": ""}},
    {"shared": {"clears": {}, "replaced": None}},
    {"shared": {"clears": {}, "replaced": "", "untold": ["odd"]}},
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


def test_what_is_known_is_kept(tmp_path: Path) -> None:
    """What was heard of others is beside the document, and neither replaces the other. The epochs
    of the server are taken, and it is told when the document is written."""
    told: list[int] = []
    state = SharedDocument(StateFile(tmp_path), dict, lambda: told.append(1))
    assert state.load() == {}
    state.known = Heard({"all": 3}, "1-0")
    state.save({"url": "x"})
    state.known = Heard({"all": 4}, "1-1", ["all"])
    assert state.note()
    assert len(told) == 1
    again = SharedDocument(StateFile(tmp_path), lambda: {"m:model": 7}, lambda: None)
    document = again.load()
    assert again.known == Heard({"all": 4}, "1-1", ["all"])
    assert document["url"] == "x"
    assert Epochs.from_json(document["epochs"]).of("model") == 7

"""The small document beside the journal."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.store import StoreError
from sglang_cached_addon.store.state import StateFile

DOCUMENT: dict[str, Any] = {"b": 1, "a": {"é": [1.5, None, True, "\n"]}, "epochs": {}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    """Without a file the document is empty, and no file is made; a document is read back as it was
    written."""
    assert StateFile(tmp_path).load() == {}
    assert names(tmp_path) == []
    StateFile(tmp_path).save({"old": "x" * 10_000})
    StateFile(tmp_path).save(DOCUMENT)
    assert StateFile(tmp_path).load() == DOCUMENT
    assert json.loads((tmp_path / "state.json").read_bytes()) == DOCUMENT
    assert names(tmp_path) == ["state.json"]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"a":1}{', b"[]", b"null", b"1", b"\xff\xfe", b"\0" * 64, b"[" * 5000],
    ids=["empty", "cut", "two", "list", "null", "number", "bytes", "nul", "deep"],
)
def test_broken(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that makes no sense is moved aside, whole, and the log says where."""
    state = StateFile(tmp_path)
    state.path.write_bytes(data)
    assert state.load() == {}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(state.path) in record.getMessage()
    assert "state.json.broken" in record.getMessage()
    assert (tmp_path / "state.json.broken").read_bytes() == data
    assert state.load() == {}
    assert len(caplog.records) == 1
    state.save(DOCUMENT)
    assert state.load() == DOCUMENT


def test_rejected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A document that its user rejects is moved aside, and the log says why."""
    state = StateFile(tmp_path)
    state.save({"epochs": "odd"})
    assert state.load() == {"epochs": "odd"}
    state.reject("epochs: not an object")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{state.path}: epochs: not an object; moved to state.json.broken"
    )
    assert names(tmp_path) == ["state.json.broken"]
    state.save_again()
    assert names(tmp_path) == ["state.json.broken"], "nothing of it comes back"
    assert state.load() == {}
    state.reject("there is none")
    assert len(caplog.records) == 1


def test_rejected_by_a_guest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In somebody else's folder nothing is moved."""
    StateFile(tmp_path).save(DOCUMENT)
    StateFile(tmp_path, is_ours=False).reject("epochs: not an object")
    assert names(tmp_path) == ["state.json"]
    assert "epochs: not an object; not used" in caplog.text


def fail(*args: object, **more: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_save(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk refuses, the former document stays, alone, and the file is named."""
    state = StateFile(tmp_path)
    state.save(DOCUMENT)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StoreError) as caught:
            state.save({"new": 1})
    assert str(caught.value) == f"cannot write {state.path}: No space left on device"
    with pytest.raises(TypeError):  # what cannot be written changes nothing
        state.save({"a": object()})
    assert state.load() == DOCUMENT
    assert names(tmp_path) == ["state.json"]


def test_unusable(tmp_path: Path) -> None:
    """A folder in the place of the file, and a folder that is no more, are a `StoreError`."""
    (tmp_path / "state.json").mkdir()
    with pytest.raises(StoreError, match=r"cannot read .*state\.json"):
        StateFile(tmp_path).load()
    with pytest.raises(StoreError, match=r"cannot write .*state\.json: No such file"):
        StateFile(tmp_path / "gone").save({})


def test_left_by_a_crash(tmp_path: Path) -> None:
    """What a killed process left aside is not read, and is in nobody's way."""
    state = StateFile(tmp_path)
    state.save(DOCUMENT)
    (tmp_path / "state.json.new").write_bytes(b'{"half": "' + b"x" * 9999)
    assert state.load() == DOCUMENT
    state.save({"new": 1})
    assert state.load() == {"new": 1}
    assert names(tmp_path) == ["state.json"]

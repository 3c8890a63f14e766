"""What is taken of an archive, and what is refused; end to end it is in `cli/test_import_`."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from sglang_cached_addon.archive import record
from sglang_cached_addon.archive.importing import BadLine, take
from sglang_cached_addon.archive.record import Record, Told
from sglang_cached_addon.archive.writing import Taken
from sglang_cached_addon.core import keys
from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.store.state import StateFile
from tests.archive.test_writing import pools, sample

KEY = keys.prefix("f") + b"k" * 24
POOL = Addition(KEY, "chat", b'{"q":1}', [sample(1)])
LINE = record.write(Record(POOL, "f", "tiny", (), [Told("", None, ())]))


def test_from_a_pipe(tmp_path: Path) -> None:
    """What cannot be read twice is kept aside, and nothing of that is left."""
    out, into = os.pipe()
    with open(out, "rb") as source:
        with open(into, "wb") as target:
            target.write(LINE)
        assert take(source, tmp_path) == Taken(1, 1, 0)
    assert pools(tmp_path) == {KEY: POOL}
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cache.jsonl", "cache.lock", "state.json"}


def test_names_of_models(tmp_path: Path) -> None:
    """Models have their names also where the line of the state was taken out."""
    take(io.BytesIO(LINE), tmp_path)
    assert StateFile(tmp_path).load() == {"models": {"f": "tiny"}}


def test_a_state_that_no_process_has_written(tmp_path: Path) -> None:
    """It is refused, as all that is known here would be lost by it."""
    with pytest.raises(BadLine, match="line 2: 'state': 'url' is no text"):
        take(io.BytesIO(LINE + record.write_state({"url": 1})), tmp_path)
    assert pools(tmp_path) == {}


def test_whom_a_server_lets_ask(tmp_path: Path) -> None:
    """That is taken of no file: it would let everybody have what is stored."""
    state = {"url": "http://one", "open": [["POST", "/generate", ""]], "models": {"f": "tiny"}}
    take(io.BytesIO(record.write_state(state) + LINE), tmp_path)
    known = StateFile(tmp_path).load()
    assert (known["url"], known["open"], known["models"]) == ("", [], {"f": "tiny"})


def test_empty(tmp_path: Path) -> None:
    """An archive of nothing is one."""
    assert take(io.BytesIO(b""), tmp_path) == Taken()

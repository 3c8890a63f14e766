"""What is read of a folder; what its filters pick out is in `tests/cli/test_ls`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cached_addon.archive.reading import Reading
from sglang_cached_addon.catalog.query import Query
from sglang_cached_addon.core import keys
from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.core.families import FAMILY
from sglang_cached_addon.store.state import StateFile
from tests.archive.test_writing import A, B, sample, take
from tests.tables import each

MINE = keys.prefix("f") + b"k" * 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a call of a known model, one of an unknown one, and a variant."""
    pools = (
        Addition(MINE, "openai-chat", b'{"messages":[{"role":"user","content":"q"}]}', [sample(1)]),
        Addition(A, "odd", b"", [sample(2), sample(3)]),
        Addition(B, FAMILY, b"", [sample(4)]),
    )
    take(tmp_path, *pools)
    StateFile(tmp_path).save({"url": "http://secret", "models": {"f": "tiny"}})
    return tmp_path


def test_all(folder: Path) -> None:
    """All that is stored is read, with the model where that is known, and without where the server
    is."""
    reading = Reading(folder, Query())
    found = {record.pool.key: record for record in reading.records()}
    assert list(found) == [MINE, A, B]
    assert (found[MINE].fingerprint, found[MINE].model, found[MINE].texts) == ("f", "tiny", ["q"])
    assert (found[A].fingerprint, found[A].texts, len(found[A].told)) == ("", (), 2)
    assert reading.state["url"] == ""
    assert reading.state["models"] == {"f": "tiny"}
    assert [entry.key for entry in reading.entries()] == [MINE, A]


@each(
    ("query", "read"),
    [
        (Query(model="tiny"), [MINE]),
        (Query(api="odd"), [A]),
        (Query(text="Q"), [MINE]),
        (Query(since=2.0), []),
    ],
)
def test_picked(query: Query, read: list[bytes], folder: Path) -> None:
    """Where entries are picked out, variants of others are no part of it."""
    assert [record.pool.key for record in Reading(folder, query).records()] == read


def test_a_document_that_makes_no_sense(folder: Path) -> None:
    """It is told, and left as it is."""
    (folder / "state.json").write_text('{"url": 1}')
    with pytest.raises(ValueError, match="'url' is no text"):
        Reading(folder, Query())
    assert (folder / "state.json").read_text() == '{"url": 1}'

"""Tables are written in pieces; what is in them is in `tests/cli/test_export`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sglang_cached_addon.archive import parquet
from sglang_cached_addon.archive.record import Record, Told
from sglang_cached_addon.core.cache import Addition
from tests.archive.test_writing import A, sample


def test_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So many rows are in memory at once, and no more."""
    read = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(parquet, "GROUP_ROWS", 4)
    samples = [sample(number) for number in range(10)]
    record = Record(Addition(A, "chat", b"", samples), told=[Told("", None, ())] * 10)
    out = io.BytesIO()
    parquet.write([record], out)
    file = read.ParquetFile(io.BytesIO(out.getvalue()))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 2]
    row = file.read().to_pylist()[3]
    assert (row["key"], row["sample"], row["model"], row["call"]) == (A.hex(), 3, None, None)


def test_nothing() -> None:
    """A table without rows is one."""
    read = pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    parquet.write([], out)
    assert read.read_table(io.BytesIO(out.getvalue())).num_rows == 0

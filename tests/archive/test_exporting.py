"""What is counted of an export; the files themselves are in `tests/cli`."""

from __future__ import annotations

import io
from pathlib import Path

from sglang_cached_addon.archive.exporting import FORMATS, Written
from sglang_cached_addon.archive.reading import Reading
from sglang_cached_addon.catalog.query import Query
from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.core.families import FAMILY
from tests.archive.test_writing import A, B, sample, take


def test_counts(tmp_path: Path) -> None:
    """Entries and samples are counted, variants of calls are not; what has no text is left out of a
    data set."""
    take(
        tmp_path,
        Addition(A, "odd", b"{}", [sample(2), sample(3)]),
        Addition(B, FAMILY, b"", [sample(4)]),
    )
    for name, wanted in (("jsonl", Written(1, 2)), ("chat", Written(0, 0, 1))):
        out = io.BytesIO()
        assert FORMATS[name](Reading(tmp_path, Query()), out) == wanted
        assert out.getvalue().count(b"\n") == (3 if name == "jsonl" else 0)

"""Which places runs have taken, and how runs are named."""

from __future__ import annotations

import pytest

from sglang_cached_addon.core import runs
from tests.tables import each


@each(("path", "found"), [
    ("/generate", (None, "/generate")),
    ("/run/a/generate", ("a", "/generate")),
    ("/run/a.B-9_/v1/models?x=/y", ("a.B-9_", "/v1/models?x=/y")),
    ("/run/a", ("a", "/")),
    ("/run/a/", ("a", "/")),
    ("/run/a?x=1", ("a", "/?x=1")),
    ("/run//generate", ("", "/generate")),
    ("/run/a//generate", ("a", "//generate")),
    ("/run/a/run/b/generate", ("a", "/run/b/generate")),
    ("/run", (None, "/run")),
    ("/runs/a/generate", (None, "/runs/a/generate")),
    ("/v1/run/a", (None, "/v1/run/a")),
])  # fmt: skip
def test_split(path: str, found: tuple[str | None, str]) -> None:
    """The prefix is taken off a path, and nothing else."""
    assert runs.split(path) == found


def test_names() -> None:
    """The header wins; a bad name says what a name is, and no name is none."""
    assert runs.chosen(None, None) == ""
    assert runs.chosen("a", None) == "a"
    assert runs.chosen("a", "b") == "b"
    for in_path, in_header in (
        ("", None),
        (None, ""),
        ("a", "b c"),
        ("x" * 101, None),
        ("ä", None),
    ):
        with pytest.raises(ValueError, match="1 to 100 letters"):
            runs.chosen(in_path, in_header)

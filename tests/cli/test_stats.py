"""`sglang-cached stats` for people; what it says in JSON, and of a folder, is in `test_reach`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.typed import typed
from tests.conftest import Proxy


def test_for_people(proxy: Proxy, tmp_path: Path) -> None:
    """Each count is in a line of its own."""
    lines = typed("stats", cache=tmp_path / "cache").stdout.splitlines()
    said = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert said["num_keys"] == "0"
    assert said["cache_file"] == str(tmp_path / "cache" / "cache.jsonl")

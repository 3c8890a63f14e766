"""`sglang-cached clear`: through a proxy and in a folder, asked for or not."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_reach import stored
from tests.cli.typed import typed
from tests.conftest import Proxy


def test_clear(proxy: Proxy, tmp_path: Path) -> None:
    """What is to be removed is asked about, and removed: by the proxy, or in its folder."""
    folder = tmp_path / "cache"
    stored(proxy)
    for answer in ("", "n\n"):
        done = typed("clear", "all", cache=folder, input=answer)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"of all in {proxy.url}?" in done.stderr
        assert proxy.stats()["total_responses"] == 1
    done = typed("clear", "other", "--yes", "--json", cache=folder)
    assert json.loads(done.stdout)["cleared_responses"] == 0
    done = typed("clear", "nobody", "--yes", cache=folder)
    assert (done.returncode, "nobody" in done.stderr) == (1, True)
    assert typed("clear", "simulated", "--yes", cache=folder).returncode == 0
    assert proxy.stats()["total_responses"] == 0
    stored(proxy)
    done = typed("clear", "current", cache=folder, input="y\n")
    assert done.stdout == "1 entries and 1 samples were removed\n"
    assert proxy.stats()["total_responses"] == 0
    stored(proxy)
    assert proxy.stop() == 0
    assert typed("clear", "current", "--yes", cache=folder).returncode == 0
    assert (folder / "cache.jsonl").read_bytes() == b""

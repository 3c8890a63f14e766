"""What can be completed of a cache; the shells that do it are in `test_completion`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.test_completion import completed
from tests.cli.test_ls import filled, listed
from tests.conftest import Proxy


def test_completing(proxy: Proxy, tmp_path: Path) -> None:
    """Keys, runs and APIs are those of the cache, with and without its proxy."""
    folder = tmp_path / "cache"
    filled(proxy)
    keys = {entry["key"] for entry in listed(folder)}
    for is_running in (True, False):
        if not is_running:
            assert proxy.stop() == 0
        for command in ("show", "delete"):
            start = min(keys)[:18]
            wanted = {key for key in keys if key.startswith(start)}
            assert set(completed("bash", command, start, cache=folder)) == wanted
        assert completed("bash", "ls", "--run", "", cache=folder) == ["monday"]
        assert "openai-chat" in completed("bash", "ls", "--api", "open", cache=folder)

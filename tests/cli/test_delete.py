"""`sglang-cached delete`, by keys and their first digits, with a proxy and without."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_ls import filled, listed, texts
from tests.cli.typed import typed
from tests.conftest import Proxy


def test_delete(proxy: Proxy, tmp_path: Path) -> None:
    """All that is named is removed, or nothing where one is unknown; with --now the text is out of
    the file."""
    folder, path = tmp_path / "cache", tmp_path / "cache" / "cache.jsonl"
    filled(proxy)
    keys = {entry["request"]: entry["key"] for entry in listed(folder)}
    for is_running, first, second in ((True, "alpha", "beta"), (False, "gamma", "delta")):
        if not is_running:
            assert proxy.stop() == 0
        before = texts(listed(folder))
        done = typed("delete", keys[first], "0" * 64, cache=folder)
        assert done.returncode == 1
        assert texts(listed(folder)) == before
        done = typed("delete", keys[first][:24], keys[first], "--json", cache=folder)
        (told,) = map(json.loads, done.stdout.splitlines())
        assert told == {"deleted": keys[first], "samples": 1, "is_compacted": False}
        assert texts(listed(folder)) == [text for text in before if text != first]
        done = typed("delete", keys[second], "--now", cache=folder)
        assert f"{keys[second]}        1" in done.stdout
        data = path.read_text()
        assert f'"{first}"' not in data
        assert f'"{second}"' not in data
    assert {entry["request"] for entry in listed(folder)} == {"epsilon", "Zeta?\x1b[31m"}


def test_no_keys(tmp_path: Path) -> None:
    """Keys that are missing are a mistake in typing."""
    done = typed("delete", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert "KEY..." in done.stderr

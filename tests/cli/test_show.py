"""`sglang-cached show`, by a whole key and by its first digits, with a proxy and without."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.cli.test_ls import filled, listed
from tests.cli.test_merge import asked
from tests.cli.typed import typed
from tests.conftest import Proxy


def test_show(proxy: Proxy, tmp_path: Path) -> None:
    """What was asked and each sample are shown, with all that is known of it."""
    folder = tmp_path / "cache"
    filled(proxy)
    said = asked(proxy, "beta", 2)[1]
    (entry,) = listed(folder, "--text", "beta")
    key = entry["key"]
    for is_running in (True, False):
        if not is_running:
            assert proxy.stop() == 0
        for name in (key, key[:24], key[:24].upper()):
            shown = json.loads(typed("show", name, "--json", cache=folder).stdout)
            assert shown["key"] == key
            assert [one["text"] for one in shown["answers"]] == [one["text"] for one in said]
            assert [one["runs"] for one in shown["answers"]] == [["monday"], []]
            assert shown["call"]["text"] == "beta"
        text = typed("show", key[:20], cache=folder).stdout
        assert re.search(rf"^key +{key}$", text, re.M)
        assert "\nasked:\nbeta\n" in text
        assert re.search(r"^sample 0 \(length, 4 tokens, .*, in monday\):$", text, re.M)
        assert said[1]["text"] in text
        chat = typed("show", listed(folder, "--api", "openai-chat")[0]["key"], cache=folder).stdout
        assert "Zeta?\\x1b[31m" in chat
        assert "\x1b" not in chat


def test_mistakes(proxy: Proxy, tmp_path: Path) -> None:
    """A key that is not there, is none, or means several, is told."""
    folder = tmp_path / "cache"
    filled(proxy)
    keys = sorted(entry["key"] for entry in listed(folder))
    for is_running in (True, False):
        if not is_running:
            assert proxy.stop() == 0
        for name, said in (("0" * 64, "0" * 64), ("xyz", "4 to 64 hexadecimal digits"), ("", "")):
            done = typed("show", name, cache=folder)
            assert (done.returncode, done.stdout) == (1, "")
            assert said in done.stderr
            assert done.stderr.count("\n") == 1
        done = typed("show", keys[0][:8], cache=folder)  # all are of one model, and begin alike
        assert done.returncode == 1
        assert all(key in done.stderr for key in keys)

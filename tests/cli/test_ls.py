"""`sglang-cached ls`: pages, filters, for people and for programs, with a proxy and without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.cli.test_merge import asked
from tests.cli.typed import typed
from tests.conftest import Proxy, until

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon")


def chatted(proxy: Proxy, text: str) -> None:
    """Has a chat stored."""
    body = {"model": "simulated", "messages": [{"role": "user", "content": text}]}
    answer = requests.post(f"{proxy.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.ok, answer.text
    proxy.stats()


def settled(proxy: Proxy, *, has_runs: bool = True) -> None:
    """Returns when all is in the files, which comes a moment later."""
    until(lambda: not proxy.stats()["pending_writes"])
    path = Path(proxy.stats()["cache_file"]).with_name("runs.jsonl")
    until(lambda: not has_runs or b'"taken"' in path.read_bytes())


def filled(proxy: Proxy) -> None:
    """Has six entries stored, one after another, the last of them a chat."""
    for word in WORDS:
        asked(proxy, word, **({"X-Cache-Run": "monday"} if word == "beta" else {}))
    chatted(proxy, "Zeta?\x1b[31m")
    settled(proxy)


def listed(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = typed("ls", "--json", *arguments, cache=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def texts(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["request"] for entry in entries]


NEWEST_FIRST = ["Zeta?\x1b[31m", *reversed(WORDS)]

FILTERED = [
    ([], NEWEST_FIRST),
    (["--limit", "0"], NEWEST_FIRST),
    (["--limit", "2"], NEWEST_FIRST[:2]),
    (["--model", "current"], NEWEST_FIRST),
    (["--model", "simulated"], NEWEST_FIRST),
    (["--model", "other"], []),
    (["--api", "openai-chat"], NEWEST_FIRST[:1]),
    (["--api", "none"], []),
    (["--text", "EPSIL"], ["epsilon"]),
    (["--run", "monday"], ["beta"]),
    (["--since", "1h"], NEWEST_FIRST),
    (["--until", "1h"], []),
    (["--since", "2020-01-01", "--until", "2020-01-02T03:04:05"], []),
]


def test_ls(proxy: Proxy, tmp_path: Path) -> None:
    """Entries are listed the newest first, as they are asked for, by the proxy and in its folder;
    pages follow each other."""
    folder = tmp_path / "cache"
    filled(proxy)
    for is_running in (True, False):
        if not is_running:
            assert proxy.stop() == 0
        for arguments, wanted in FILTERED:
            assert texts(listed(folder, *arguments)) == wanted, (is_running, arguments)
        found, more = [], ["--limit", "4"]
        while more:
            done = typed("ls", "--json", *more, cache=folder)
            found += [json.loads(line)["request"] for line in done.stdout.splitlines()]
            next_page = re.search(r"--cursor \S+", done.stderr)
            more = ["--limit", "4", *next_page[0].split()] if next_page else []
        assert found == NEWEST_FIRST
        done = typed("ls", "--limit", "2", cache=folder)
        head, first, second = done.stdout.splitlines()
        assert re.match(r"KEY +AGE +SAMPLES +TOKENS +SIZE +REQUEST", head)
        zeta = r"[0-9a-f]{24} .* 1 +\d+ .*B  Zeta\?\\x1b\[31m +openai-chat +simulated$"
        assert re.match(zeta, first)
        assert re.match(r"[0-9a-f]{24} .* 1 +4 .* epsilon +sglang-generate +simulated$", second)
        assert "2 entries are shown of 6 that are stored" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "nobody"], 1, "nobody"),
        (["--run", "tuesday"], 1, "tuesday"),
        (["--since", "yesterday"], 2, "yesterday: must be an age as 90s"),
        (["--limit", "-1"], 2, "-1"),
        (["--cursor", "x"], 1, "cursor"),
    ],
)
def test_mistakes(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    """What nobody knows, and what is no time, is told."""
    (tmp_path / "cache.jsonl").touch()
    done = typed("ls", *arguments, cache=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr

"""`sglang-cached diff`, end to end: folders, models and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import requests

from tests.archive.test_comparing import ONE, TWO, fill
from tests.cli.typed import typed
from tests.conftest import Proxy, until
from tests.tables import each


def told(*arguments: str, cache: Path | None = None) -> list[dict[str, Any]]:
    done = typed("diff", "--json", *arguments, cache=cache)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_folders(tmp_path: Path) -> None:
    """What differs is told for each call, and all is counted."""
    one, two = tmp_path / "one", tmp_path / "two"
    fill(one, (1, "a"), (2, "b"), (3, "c"))
    fill(two, (1, "a"), (2, "xy"), (4, "z"), model=TWO)
    first, second, third, counts = told(str(one), str(two))
    assert first == {
        "verdict": "differs",
        "api": "sglang-generate",
        "call": {"text": "call 2"},
        "a": {"key": (ONE + b"\2" * 24).hex(), "samples": [{"text": "b", "finish_reason": "stop"}]},
        "b": {
            "key": (TWO + b"\2" * 24).hex(),
            "samples": [{"text": text, "finish_reason": "stop"} for text in "xy"],
        },
    }
    assert (second["verdict"], second["b"]) == ("only_a", None)
    assert (third["verdict"], third["a"]) == ("only_b", None)
    assert counts == {"same": 1, "differs": 1, "only_a": 1, "only_b": 1}
    people = typed("diff", str(one), str(two)).stdout
    assert "sglang-generate  call 2\n  sample 0: [-b-]{+x+}\n  1 and 2 samples\n\n" in people
    assert "1 calls have the same answers, 1 have others\n" in people
    assert f"1 calls are only in {one}, 1 only in {two}\n" in people
    assert "sample 0" not in typed("diff", "--limit", "0", str(one), str(two)).stdout
    for other, code in ((one, 0), (two, 1)):
        assert typed("diff", "--exit-code", str(one), str(other)).returncode == code


def test_runs_and_models(proxy: Proxy, tmp_path: Path) -> None:
    """Two runs are compared by what each has taken, beside a running proxy, and models by name."""
    folder = tmp_path / "cache"
    for name, count in (("a", 1), ("b", 1), ("c", 2)):
        for _ in range(count):
            body = {"text": "one two", "sampling_params": {"temperature": 0.9}}
            assert requests.post(f"{proxy.url}/run/{name}/generate", json=body, timeout=60).ok
    until(lambda: proxy.stats()["pending_writes"] == 0)
    until(
        lambda: all(name in (folder / "runs.jsonl").read_text() for name in ('"a"', '"b"', '"c"'))
    )
    assert told("--runs", "a", "b", cache=folder) == [
        {"same": 1, "differs": 0, "only_a": 0, "only_b": 0}
    ]
    assert proxy.stop() == 0
    assert told("--runs", "a", "c", cache=folder)[-1]["same"] == 1
    (counts,) = told("--models", "simulated", "simulated", cache=folder)
    assert counts["same"] == 1


WRONG: dict[str, tuple[list[str], str]] = {
    "no folder": (["none", "none"], "no cache in"),
    "no run": (["--runs", "x", "y"], "no run x; known: none"),
    "no model": (["--models", "x", "y"], "no model x; known: none"),
}


@each("case", WRONG)
def test_typed_wrongly(case: str, tmp_path: Path) -> None:
    """What is not there is named, with what there is."""
    fill(tmp_path, (1, "a"))
    arguments, expected = WRONG[case]
    done = typed("diff", *arguments, cache=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr

"""`sglang-cached merge`, of the folders of two proxies for a third one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import requests

from tests.cli.typed import typed
from tests.conftest import Proxy, StartProxy
from tests.simulator import Simulator


def asked(proxy: Proxy, text: str, n: int = 1, **headers: str) -> tuple[str, Any]:
    """What a call is answered, and where that came from."""
    body = {"text": text, "sampling_params": {"temperature": 0.9, "max_new_tokens": 4, "n": n}}
    answer = requests.post(f"{proxy.url}/generate", json=body, headers=headers, timeout=60)
    assert answer.ok, answer.text
    proxy.stats()  # when it is stored
    return answer.headers["X-Cache"], answer.json()


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["text"] for answer in answers]


def test_merge(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A proxy on the merged folder answers what either would, the first one's samples first, and
    goes on with its runs."""
    said = {}
    for name, words in (("one", ("both", "first")), ("two", ("both", "second"))):
        proxy = start_proxy(simulator.url, cache=tmp_path / name)
        said[name] = {text: asked(proxy, text, 2)[1] for text in words}
        if name == "one":
            asked(proxy, "both", **{"X-Cache-Run": "monday"})
        assert proxy.stop() == 0
    target = tmp_path / "target"
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    done = typed("merge", *folders, "--into", str(target), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["entries"], found["samples"], found["present"], found["runs"]) == (4, 8, 0, 1)
    done = typed("merge", *folders, "--into", str(target))
    assert "0 samples added to 0 entries, 8 were there already" in done.stdout
    proxy = start_proxy(simulator.url, "--mode", "offline", cache=target)
    wanted = texts(said["one"]["both"]) + texts(said["two"]["both"])
    assert texts(asked(proxy, "both", 4)[1]) == wanted
    for name, word in (("one", "first"), ("two", "second")):
        kind, answers = asked(proxy, word, 2)
        assert (kind, texts(answers)) == ("HIT", texts(said[name][word]))
    _, answer = asked(proxy, "both", **{"X-Cache-Run": "monday"})
    assert answer["text"] == wanted[1]


def test_mistakes(tmp_path: Path) -> None:
    """What is no cache, and a folder that is merged into itself, are refused."""
    (tmp_path / "cache.jsonl").touch()
    for folders, into, said in (
        ([tmp_path / "none"], tmp_path / "c", "there is no cache.jsonl"),
        ([tmp_path], tmp_path / "x" / "..", "is one of the folders"),
        ([], tmp_path / "c", "Missing argument"),
    ):
        done = typed("merge", *map(str, folders), "--into", str(into))
        assert done.returncode == 2
        assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache.jsonl"]

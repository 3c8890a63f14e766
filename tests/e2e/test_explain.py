"""What would become of a call, end to end: over HTTP, by the command, with and without a proxy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.cli.typed import typed
from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import CALLS, CHAT, GENERATE, ask, asking, greedy, post
from tests.simulator import Simulator

pytestmark = pytest.mark.one_way


def explained(proxy: Proxy, path: str, body: Any, **more: Any) -> dict[str, Any]:
    """What a call comes to, without counting or asking anything."""
    until(lambda: proxy.stats()["pending_writes"] == 0)
    before = proxy.stats()
    asked = {"path": path, "body": body, **more}
    answer = requests.post(f"{proxy.url}/cache/explain", json=asked, timeout=30)
    assert answer.status_code == 200, answer.text
    assert proxy.stats() == before
    found: dict[str, Any] = answer.json()
    return found


def test_each_api(proxy: Proxy, simulator: Simulator) -> None:
    """It is told of a call what becomes of it, by the key that its answer has then."""
    for number, (path, form) in enumerate(CALLS):
        stored, other = f"call {number} of three", f"call {number} of four"
        ask(proxy, path, asking(path, stored, n=2, **form))
        for n, outcome in ((1, "hit"), (2, "hit"), (3, "partial")):
            found = explained(proxy, path, asking(path, stored, n, **form))
            assert (found["outcome"], found["has"], found["wants"]) == (outcome, min(n, 2), n)
        asked = asking(path, other, **form)
        found = explained(proxy, path, asked)
        assert (found["outcome"], found["has"]) == ("miss", 0)
        (difference,) = found["nearest"][0]["differences"]
        assert (difference["asked"], difference["stored"]) == (other, stored)
        assert found["nearest"][0]["is_same_model"]
        received = len(simulator.received)
        said = ask(proxy, path, asked).headers["Cache-Status"]
        assert f'key="{found["key"][:32]}"' in said
        assert len(simulator.received) > received


def test_runs_and_headers(proxy: Proxy) -> None:
    """A run, a directive and a mode count as they do for the call itself."""
    body = asking(GENERATE, n=2)
    ask(proxy, GENERATE, body)
    one = asking(GENERATE)
    ask(proxy, f"/run/r{GENERATE}", one)
    assert explained(proxy, f"/run/r{GENERATE}", one)["outcome"] == "hit"
    ask(proxy, f"/run/r{GENERATE}", one)
    found = explained(proxy, GENERATE, one, headers={"X-Cache-Run": "r"})
    assert (found["outcome"], found["run"]) == ("miss", "r")
    found = explained(proxy, GENERATE, one, headers={"Cache-Control": "no-store"})
    assert (found["outcome"], found["reason"]) == ("bypass", "no-store")
    found = explained(proxy, "/v1/models", {})
    assert (found["outcome"], found["reason"], found["api"]) == ("bypass", "route", None)


def test_private(proxy: Proxy) -> None:
    """What is stored is not for everybody, and what is no call is refused."""
    asked = {"path": GENERATE, "body": asking(GENERATE)}
    for headers in ({"X-Forwarded-For": "10.0.0.1"}, {"Origin": "http://evil.example"}):
        assert ask(proxy, "/cache/explain", asked, headers).status_code == 403
    refused = ask(proxy, "/cache/explain", {"path": GENERATE})
    assert refused.status_code == 400
    assert "/cache/explain takes" in refused.json()["error"]["message"]


def test_command(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """The command tells the same of a file, in each way of writing, whether or not the proxy
    runs."""
    folder = tmp_path / "cache"
    proxy = start_proxy(simulator.url, cache=folder)
    for path, form in CALLS:
        ask(proxy, path, asking(path, "one two three", **form))
    until(lambda: proxy.stats()["pending_writes"] == 0)
    body = asking(CHAT, "one two four")
    ways = (body, {"path": CHAT, "body": body}, {"custom_id": "1", "url": CHAT, "body": body})

    def told() -> list[dict[str, Any]]:
        found = [
            json.loads(typed("explain", "--json", "-", cache=folder, input=json.dumps(way)).stdout)
            for way in ways
        ]
        return [{k: v for k, v in one.items() if k != "is_admitted"} for one in found]

    running = told()
    (tmp_path / "body.json").write_text(json.dumps(asking(CHAT, "one two three")))
    for arguments, expected in (
        ([], "outcome  hit\n"),
        (["--path", "/x"], "reason   route\n"),
        (["-H", "Cache-Control: no-store"], "reason   no-store\n"),
    ):
        done = typed("explain", *arguments, str(tmp_path / "body.json"), cache=folder)
        assert expected in done.stdout, done
    assert proxy.stop() == 0
    alone = told()
    for found in (*running, *alone):
        assert (found["outcome"], found["api"]) == ("miss", "openai-chat")
        assert found == running[0]
    done = typed("explain", "-", cache=folder, input=json.dumps(body))
    assert f"nearest: {running[0]['nearest'][0]['key']}\n" in done.stdout
    assert '    asked   "one two four"\n    stored  "one two three"\n' in done.stdout


def test_offline_looks_the_same_way(
    simulator: Simulator, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """A proxy that asks nobody says in its 504 what explaining the call tells."""
    proxy = start_proxy(simulator.url, cache=tmp_path / "cache")
    ask(proxy, GENERATE, asking(GENERATE, "one two three"))
    assert proxy.stop() == 0
    offline = start_proxy(simulator.url, "--mode", "offline", cache=tmp_path / "cache")
    denied = post(offline, GENERATE, asking(GENERATE, "one two four"))
    found = explained(offline, GENERATE, asking(GENERATE, "one two four"))
    assert (denied.status_code, found["reason"]) == (504, "offline")
    sentence = found["text"].removeprefix("0 of 1 samples are stored. ")
    assert denied.json()["error"]["message"].endswith(sentence)
    assert 'stored "one two three"' in sentence


def test_greedy_calls_with_other_limits(proxy: Proxy) -> None:
    """A greedy call that is answered by what is stored for another limit is told to be a hit, and
    nothing is stored for it by that."""
    body = greedy(GENERATE, "one two three")
    body["sampling_params"]["max_new_tokens"] = 30
    ask(proxy, GENERATE, {**body, "stream": True})
    body["sampling_params"]["max_new_tokens"] = 5
    for _ in range(2):
        found = explained(proxy, GENERATE, body)
        assert (found["outcome"], found["has"]) == ("hit", 1)
        assert "another limit of tokens" in found["text"]
    assert "cut from" in ask(proxy, GENERATE, body).headers["Cache-Status"]
    assert explained(proxy, GENERATE, body)["text"] == "1 of 1 samples are stored."
    body["sampling_params"]["max_new_tokens"] = 40
    found = explained(proxy, GENERATE, body)
    assert (found["outcome"], found["nearest"][0]["differences"][0]["at"]) == (
        "miss", "sampling_params.max_new_tokens",
    )  # fmt: skip

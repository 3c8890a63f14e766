"""`sglang-cached warm`, end to end."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import requests

from sglang_cached_addon.store import DiskStore
from tests.cli.typed import surroundings, typed
from tests.conftest import COMMAND, Proxy, StartProxy, until
from tests.simulator import Fault, Simulator
from tests.tables import each

PARAMS = {"max_new_tokens": 4, "temperature": 0.9}
CALLS: list[Any] = [
    {"text": "one", "sampling_params": PARAMS},
    {"path": "/generate", "body": {"text": "two", "sampling_params": {**PARAMS, "n": 2}}},
    {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions",
     "body": {"model": "m", "messages": [{"role": "user", "content": "three"}], "max_tokens": 4}},
    {"prompt": "four", "max_tokens": 4, "model": "m", "stream": True,
     "stream_options": {"include_usage": True}},
]  # fmt: skip


def written(path: Path, calls: list[Any]) -> Path:
    path.write_text("\n\n".join(map(json.dumps, calls)) + "\n")
    return path


def told(*arguments: str, cache: Path, code: int = 0, input: str = "") -> dict[str, Any]:
    done = typed("warm", "--json", *arguments, cache=cache, input=input)
    assert done.returncode == code, done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_warm(proxy: Proxy, simulator: Simulator, tmp_path: Path) -> None:
    """Each way of writing is sent, and stored; sent again, all are hits, and of what is more only
    that is generated."""
    folder = tmp_path / "cache"
    file = written(tmp_path / "calls.jsonl", CALLS)
    first = told(str(file), cache=folder)
    assert (first["lines"], first["sent"], first["misses"], first["hits"]) == (4, 4, 4, 0)
    assert (first["samples"], first["generated"], first["tokens"]) == (5, 5, 20)
    assert (first["failures"], first["not_stored"], first["stopped"]) == ({}, {}, None)
    assert simulator.samples == 5
    proxy.stats()
    again = told("-", "--concurrency", "1", cache=folder, input=file.read_text())
    assert (again["hits"], again["generated"], again["samples"]) == (4, 0, 5)
    CALLS[1]["body"]["sampling_params"]["n"] = 3
    more = told(str(written(file, CALLS)), cache=folder)
    assert (more["hits"], more["partial_hits"], more["generated"]) == (3, 1, 1)
    assert simulator.samples == 6
    people = typed("warm", "--url", proxy.url, str(file), cache=folder).stdout
    assert "calls         4\nhits          4\n" in people
    assert "samples       6, 0 of them generated\n" in people


def test_failures(proxy: Proxy, simulator: Simulator, tmp_path: Path) -> None:
    """What fails is told with its line, and the rest is sent."""
    folder = tmp_path / "cache"
    file = written(tmp_path / "calls.jsonl", [CALLS[0], {"path": "/none", "body": {}}, CALLS[2]])
    found = told(str(file), cache=folder, code=1)
    assert (found["sent"], found["misses"]) == (3, 2)
    (failed,) = found["failed"]
    assert (failed["line"], failed["custom_id"]) == (3, None)
    assert failed["why"].startswith("status 404")
    simulator.faults.append(Fault.ABORT)
    aborted = told("-", cache=folder, input='{"text":"new","sampling_params":{}}')
    assert aborted["not_stored"] == {"abort": 1}
    people = typed("warm", str(file), cache=folder)
    assert people.returncode == 1
    assert "line 3  status 404" in people.stdout


WRONG: dict[str, tuple[str, str]] = {
    "a line": ('{"text":"a"}\n\n{"a":1}\n[]\n', "<stdin>:3: its path cannot be guessed"),
    "two lines": ('{"text":"a"}\n\n{"a":1}\n[]\n', "<stdin>:4: not a JSON object"),
}


@each("case", WRONG)
def test_bad_lines(proxy: Proxy, simulator: Simulator, tmp_path: Path, case: str) -> None:
    """Where a line is no call, it is told which, and nothing is sent."""
    text, expected = WRONG[case]
    done = typed("warm", "-", cache=tmp_path / "cache", input=text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing is sent" in done.stderr
    assert expected in done.stderr
    assert simulator.samples == 0


def test_no_proxy(tmp_path: Path) -> None:
    """It is told that no proxy runs."""
    DiskStore(tmp_path).close()
    done = typed("warm", "-", cache=tmp_path, input='{"text":"a"}')
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no proxy runs with {tmp_path}" in done.stderr


def test_interrupted(proxy: Proxy, simulator: Simulator, tmp_path: Path) -> None:
    """Ctrl+C ends it with what came of it until then; typed again, it goes on."""
    file = written(tmp_path / "calls.jsonl", [
        {"text": text, "sampling_params": PARAMS} for text in ("one", "two", "three")
    ])  # fmt: skip
    body = {"text": "one", "sampling_params": PARAMS}
    assert requests.post(f"{proxy.url}/generate", json=body, timeout=60).ok
    proxy.stats()
    simulator.faults += [Fault.HOLD, Fault.HOLD]
    process = subprocess.Popen(
        [str(COMMAND), "warm", "--json", "--concurrency", "1", str(file)],
        env=surroundings(tmp_path / "cache"), stdout=subprocess.PIPE, text=True,
        # A shell has what it starts in the background ignore Ctrl+C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    until(lambda: simulator.samples == 1 and proxy.stats()["fetches_in_flight"] == 1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    found = json.loads(output)
    assert process.returncode == 130
    assert (found["lines"], found["sent"], found["hits"]) == (3, 1, 1)
    assert found["stopped"] == "interrupted"
    simulator.faults.clear()
    again = told(str(file), cache=tmp_path / "cache")
    assert (again["sent"], again["hits"]) == (3, 1)


def test_denied(
    simulator: Simulator, proxy: Proxy, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """What a proxy that does not ask upstream has not stored is denied: it is told so, at once."""
    file = written(tmp_path / "calls.jsonl", [CALLS[0]])
    told(str(file), cache=tmp_path / "cache")
    assert proxy.stop() == 0
    offline = start_proxy(simulator.url, "--mode", "offline")
    written(file, [CALLS[0], CALLS[2]])
    at = ("--url", offline.url)
    found = told(*at, str(file), cache=tmp_path / "cache", code=1)
    assert (found["sent"], found["hits"], found["denied"]) == (2, 1, {"offline": 1})
    assert (found["failures"], found["failed"]) == ({}, [])
    people = typed("warm", *at, str(file), cache=tmp_path / "cache").stdout
    assert "denied        1\nfailures      0\n" in people
    assert "\ndenied  1 x offline\n" in people

"""`sglang-cached export` and `import`: what a cache has answered is answered elsewhere, too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_ls import settled
from tests.cli.typed import surroundings, typed
from tests.conftest import COMMAND, Proxy, StartProxy, cache_status
from tests.e2e.calls import BODIES, CHAT, GENERATE, ask, asking, greedy, post, sampled
from tests.e2e.test_sglang import limited
from tests.simulator import Simulator

SAMPLED = [
    *((path, asking(path, "with n", n=3)) for path in BODIES),
    *((path, asking(path, "as a stream", stream=True)) for path in BODIES),
    (GENERATE, asking(GENERATE, ["a list", "of prompts"], n=2)),
    (CHAT, greedy(CHAT, "a chat, caf\u00e9 \U0001f600\u0000")),
]
LONG, SHORT = (limited(GENERATE, "a greedy one", tokens, scores=False) for tokens in (100, 10))


def said(proxy: Proxy, path: str, body: dict[str, Any]) -> tuple[str, bytes, str]:
    """What a call is answered, but for the ids and times that are the answer's own."""
    answer = post(proxy, path, {"rid": "mine", **body} if path == GENERATE else body)
    return answer.headers["X-Cache"], answer.content, cache_status(answer.headers)


@pytest.fixture
def filled(proxy: Proxy) -> Proxy:
    """A proxy that has all kinds of calls stored, and one taken in a run."""
    for path, body in [*SAMPLED, (GENERATE, LONG)]:
        assert ask(proxy, path, body).ok
    assert ask(proxy, f"/run/monday{GENERATE}", asking(GENERATE, "with n")).ok
    settled(proxy)
    return proxy


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_there_and_back(
    simulator: Simulator, filled: Proxy, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """What is exported beside a running proxy makes another one answer the same, byte for byte,
    also what is cut of a longer greedy answer; and it is exported from there as it was."""
    file, new = tmp_path / "cache.export", tmp_path / "new"
    done = typed("export", str(file), "--json", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    stats = filled.stats()
    told = json.loads(done.stdout)
    assert (told["entries"], told["samples"]) == (stats["num_keys"], stats["total_responses"])
    assert file.stat().st_mode & 0o777 == 0o600
    for samples in (told["samples"], 0):
        done = typed("import", str(file), "--json", cache=new)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["samples"] == samples
    again = tmp_path / "again.export"
    assert typed("export", str(again), cache=new).returncode == 0
    head, *records = lines(file)
    for one in records:
        for sample in one["samples"]:
            sample["runs"] = []
    assert lines(again) == [head, *records]
    other = start_proxy(simulator.url, cache=new)
    simulator.received.clear()
    for path, body in SAMPLED:
        wanted = said(filled, path, body)
        assert wanted[0] == "HIT"
        assert said(other, path, body) == wanted
    assert said(other, GENERATE, SHORT) == said(filled, GENERATE, SHORT)
    for place in range(3):  # a run begins anew, and has the same samples
        answer = post(other, f"/run/monday{GENERATE}", asking(GENERATE, "with n"))
        assert (answer.headers["X-Cache"], answer.headers["X-Cache-Sample"]) == ("HIT", str(place))
    assert not [body for body in sampled(simulator) if body.get("max_tokens") != 1]


def test_provenance(filled: Proxy, tmp_path: Path) -> None:
    """A line says which model was asked what, and of each sample what it says, and when and in
    which runs it was used."""
    file = tmp_path / "file"
    arguments = ["--text", "with n", "--api", "sglang-generate"]
    assert typed("export", str(file), *arguments, cache=tmp_path / "cache").returncode == 0
    head, line = lines(file)
    assert head["format"] == line["format"] == 1
    assert head["state"]["url"] == ""
    assert head["state"]["open"] == []
    model = filled.info()["model"]
    assert line["model"] == {"name": model["name"], "fingerprint": model["fingerprint"]}
    assert line["call"]["text"] == line["texts"][0] == "with n"
    assert [sample["runs"] for sample in line["samples"]] == [["monday"], [], []]
    for sample in line["samples"]:
        assert sample["text"] == sample["answer"]["text"]
        assert sample["tokens"] == sample["answer"]["meta_info"]["completion_tokens"] == 8
        assert sample["seconds"] > 0
        assert sample["stored_at"] > 1.7e9


def test_weights_that_were_changed(
    simulator: Simulator, start_proxy: StartProxy, proxy: Proxy, tmp_path: Path
) -> None:
    """What is known of changed weights goes with the answers: of the same server they are hits, and
    of one that was started anew they are not."""
    body = asking(GENERATE, "after a change")
    assert post(proxy, "/update_weights_from_disk", {"model_path": "simulated"}).ok
    assert ask(proxy, GENERATE, body).ok
    settled(proxy, has_runs=False)
    exported = subprocess.run(
        [COMMAND, "export"], env=surroundings(tmp_path / "cache"), capture_output=True, timeout=60
    )
    assert exported.stderr == b"1 entries, 1 samples\n"
    new = tmp_path / "new"
    done = typed("import", cache=new, input=exported.stdout.decode())
    assert "1 samples added to 1 entries, 0 were there already" in done.stdout
    assert ask(start_proxy(simulator.url, cache=new), GENERATE, body).headers["X-Cache"] == "HIT"


def test_a_bad_line(filled: Proxy, tmp_path: Path) -> None:
    """A line that is wrong is named with its number, and nothing of the file is taken."""
    file, new = tmp_path / "file", tmp_path / "new"
    assert typed("export", str(file), cache=tmp_path / "cache").returncode == 0
    good = file.read_bytes().splitlines(keepends=True)
    for bad, why in ((b"{\n", "line 3: no JSON"), (good[2][:-20], f"line {len(good)}: no JSON")):
        rest = good[2:] if bad == b"{\n" else []
        head = good[:2] if rest else good[:-1]
        file.write_bytes(b"".join([*head, bad, *rest]))
        for arguments, input in (([str(file)], ""), ([], file.read_text())):
            done = typed("import", *arguments, cache=new, input=input)
            assert (done.returncode, done.stdout) == (1, "")
            assert why in done.stderr
            assert "nothing was taken" in done.stderr
            assert (new / "cache.jsonl").read_bytes() == b""
            assert not (new / "state.json").exists()


def test_a_folder_in_use(filled: Proxy, tmp_path: Path) -> None:
    """The folder of a running proxy is refused, and it is said what to do."""
    file = tmp_path / "file"
    assert typed("export", str(file), cache=tmp_path / "cache").returncode == 0
    done = typed("import", str(file), cache=tmp_path / "cache")
    assert done.returncode == 1
    assert f"in use by process {filled.process.pid}; stop it" in done.stderr


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there is a mistake in typing, and nothing is made."""
    done = typed("import", str(tmp_path / "none"), cache=tmp_path / "new")
    assert done.returncode == 2
    assert "No such file" in done.stderr
    assert list(tmp_path.iterdir()) == []

"""How much is kept, where, and for how long: `--memory`, `--max-entries`, `--ttl`, `--readonly`."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cached_addon.cache import Sample
from sglang_cached_addon.simulator import Simulator
from sglang_cached_addon.store.lines import encode
from tests.conftest import COMMAND, Proxy, StartProxy, until
from tests.e2e.test_modes import BODIES, FORMS, ask, asking, heard

GENERATE, *_ = BODIES


def kinds(proxy: Proxy, *texts: str, **more: Any) -> str:
    """What becomes of calls: M for a miss, H for a hit, P for a top-up."""
    return "".join(
        ask(proxy, GENERATE, asking(GENERATE, text, **more)).headers["X-Cache"][0] for text in texts
    )


def kind(proxy: Proxy, text: str, **more: Any) -> str:
    """As `kinds`, for one who looks again and again and wants nothing fetched."""
    answer = ask(
        proxy, GENERATE, asking(GENERATE, text, **more), **{"Cache-Control": "only-if-cached"}
    )
    return answer.headers["X-Cache"][0]


def test_more_than_memory_holds(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What is only on the disk would be generated again, be another answer, or be out of order."""
    options = ("--memory", "2K")
    proxy = start_proxy(simulator.url, *options)
    calls = [
        (path, asking(path, f"call {i}", n, **form))
        for i in range(8) for path in BODIES for form in FORMS.values() for n in (1, 3)
    ]  # fmt: skip
    # A stream after its JSON, and three samples after one of them, come from one pool.
    first = [heard(path, ask(proxy, path, body)) for path, body in calls]
    again = [heard(path, ask(proxy, path, body)) for path, body in calls]
    generated = simulator.samples
    assert generated == 8 * len(BODIES) * 3
    assert again == first
    info = requests.get(f"{proxy.url}/cache/info", timeout=20).json()
    assert info["memory_bytes"] < 8_000 < info["file_bytes"]
    assert info["total_responses"] == generated
    assert proxy.stop() == 0
    proxy = start_proxy(simulator.url, *options)
    assert [heard(path, ask(proxy, path, body)) for path, body in calls] == first
    assert simulator.samples == generated
    assert "Traceback" not in proxy.log


def test_least_recently_used(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What is asked for all the time would be generated again and again."""
    options = ("--max-entries", "3")
    proxy = start_proxy(simulator.url, *options)
    assert kinds(proxy, "a", "b", "c", "a") == "MMMH"
    assert kinds(proxy, "a", "a", n=2) == "PH"
    assert kinds(proxy, "d") == "M"
    assert proxy.stats()["num_keys"] == 3
    assert kinds(proxy, "a", "c", "d", "b") == "HHHM"
    assert proxy.stop() == 0
    proxy = start_proxy(simulator.url, *options)
    assert proxy.stats()["num_keys"] == 3
    assert kinds(proxy, "b", "d", "c") == "HHH"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_expiry(form: dict[str, Any], simulator: Simulator, start_proxy: StartProxy) -> None:
    """An answer that is too old would be given, because its like was given before."""
    proxy = start_proxy(simulator.url, "--ttl", "1.5s")
    assert kinds(proxy, "a", "a", n=2, **form) == "MH"
    assert until(lambda: kind(proxy, "a", n=2, **form) == "M")
    assert kinds(proxy, "a", "a", n=2, **form) == "MH"


def test_beside_the_owner(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Two proxies could not use one folder, or the second would spoil it."""
    owner = start_proxy(simulator.url)
    assert kinds(owner, "a") == "M"
    until(lambda: owner.stats()["pending_writes"] == 0)
    second = start_proxy(simulator.url, "--readonly")
    assert kinds(second, "a", "b", "b") == "HMM"
    assert kinds(owner, "b") == "M"
    assert until(lambda: kind(second, "b") == "H")
    cleared = requests.post(f"{second.url}/cache/clear", timeout=20)
    assert cleared.status_code >= 400
    assert "--readonly" in cleared.text
    assert requests.post(f"{owner.url}/cache/clear", timeout=20).status_code == 200
    assert until(lambda: kind(second, "a") + kind(second, "b") == "MM")
    assert second.stop() == owner.stop() == 0
    assert "Traceback" not in second.log


def test_a_second_owner(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Who has the folder would have to be searched for."""
    owner = start_proxy(simulator.url)
    second = start_proxy(simulator.url, ready=False)
    assert second.process.wait(40) == 1
    assert f"is in use by process {owner.process.pid};" in second.log
    assert len(second.log.splitlines()) == 1


def warnings(proxy: Proxy) -> list[str]:
    return [line for line in proxy.log.splitlines() if "cache.jsonl" in line]


def test_disk_full(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Clients would hear of it, or what came meanwhile be lost, or be out of order."""
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a") == "M"
    assert until(lambda: proxy.stats()["pending_writes"] == 0)
    path = Path(proxy.stats()["cache_file"])
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    # Half of the next line still fits.
    limit = path.stat().st_size + 100
    resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    assert kinds(proxy, "b", "c") == "MM"
    assert kinds(proxy, "a", "b", "c") == "HHH"
    assert kinds(proxy, "b", n=3) == "P"
    assert until(lambda: warnings(proxy))
    assert kinds(proxy, "d") == "M"
    assert proxy.stats()["pending_writes"] > 0
    assert proxy.stats()["dropped_writes"] == 0
    resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert until(lambda: proxy.stats()["pending_writes"] == 0)
    assert kinds(proxy, "e") == "M"
    assert len(warnings(proxy)) == 1
    assert proxy.stop() == 0
    lines = path.read_bytes().splitlines()
    calls = [json.loads(line).get("call", {}).get("text") for line in lines]
    assert calls == ["a", "b", "c", None, "d", "e"]
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a", "b", "c", "d", "e") == "HHHHH"
    assert kinds(proxy, "b", n=3) == "H"


@pytest.mark.parametrize("is_all", [True, False], ids=["folder", "file"])
def test_removed(is_all: bool, simulator: Simulator, start_proxy: StartProxy) -> None:
    """All that comes would go to a file that nobody will ever find."""
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "old") == "M"
    updated = requests.post(
        f"{proxy.url}/update_weights_from_disk", json={"model_path": "x"}, timeout=20
    )
    assert updated.status_code == 200
    assert kinds(proxy, "a", "b") == "MM"
    assert until(lambda: proxy.stats()["pending_writes"] == 0)
    path = Path(proxy.stats()["cache_file"])
    if is_all:
        shutil.rmtree(path.parent)
    else:
        path.unlink()
    assert kinds(proxy, "a", "c") == "HM"
    assert until(lambda: proxy.stats()["pending_writes"] == 0)
    assert len(warnings(proxy)) == 1
    second = start_proxy(simulator.url, ready=False)
    assert second.process.wait(40) == 1, "the folder is still ours"
    assert proxy.stop() == 0
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a", "b", "c", "old") == "HHHM", "the model has changed since"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress(is_terminal: bool, simulator: Simulator, tmp_path: Path) -> None:
    """Who starts with a large cache would think that nothing happens; who reads a log would find
    it full of percentages."""
    sample = Sample(b"{}", 1.0, 0.5, 1)
    lines = (encode(n.to_bytes(32), "generate", None, [sample]) for n in range(45_000))
    (tmp_path / "cache.jsonl").write_bytes(b"".join(lines))
    reader, writer = os.openpty() if is_terminal else os.pipe()
    arguments = ["--sglang-url", simulator.url, "--port", "0", "--cache-path", str(tmp_path)]
    with subprocess.Popen(
        [str(COMMAND), "start", *arguments], stdout=subprocess.PIPE, stderr=writer
    ) as process:
        os.close(writer)
        assert process.stdout
        banner = iter(process.stdout.readline, b"")
        assert any(b"45000 entries" in line for line in banner)
        process.terminate()
    said = b""
    with suppress(OSError):  # where a terminal has come to its end
        while data := os.read(reader, 65536):
            said += data
    os.close(reader)
    shown = re.findall(rb"\r\x1b\[Kreading the cache: (\d+)%", said)
    assert shown == ([b"44", b"89"] if is_terminal else [])
    assert said.count(b"\x1b[K") == (3 if is_terminal else 0), "it is not taken away at the end"

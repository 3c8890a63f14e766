"""How much is kept, where, and for how long: `--memory`, `--max-entries`, `--ttl`, `--readonly`."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.journal.lines import encode
from tests.conftest import COMMAND, Proxy, StartProxy, starter, until
from tests.e2e.calls import BODIES, FORMS, GENERATE, ask, asking, forms, heard, post
from tests.e2e.test_large import hitting
from tests.replayer import replaying
from tests.simulator import Simulator

pytestmark = pytest.mark.one_way


def kinds(proxy: Proxy, *texts: str, **more: Any) -> str:
    """What becomes of calls: M for a miss, H for a hit, P for a top-up."""
    return "".join(
        ask(proxy, GENERATE, asking(GENERATE, text, **more)).headers["X-Cache"][0] for text in texts
    )


def kind(proxy: Proxy, text: str, **more: Any) -> str:
    """As `kinds`, for one who looks again and again and wants nothing fetched: a miss is denied."""
    cached = {"Cache-Control": "only-if-cached"}
    answer = ask(proxy, GENERATE, asking(GENERATE, text, **more), cached)
    return answer.headers["X-Cache"].replace("DENIED", "M")[0]


def test_more_than_memory_holds(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What is only on the disk is found there, and in its order."""
    options = ("--memory", "2K")
    proxy = start_proxy(simulator.url, *options)
    calls = [
        (path, asking(path, f"call {i}", n, **form))
        for i in range(5) for path in BODIES for form in FORMS.values() for n in (1, 3)
    ]  # fmt: skip
    # A stream after its JSON, and three samples after one of them, come from one pool.
    first = [heard(path, ask(proxy, path, body)) for path, body in calls]
    again = [heard(path, ask(proxy, path, body)) for path, body in calls]
    generated = simulator.samples
    assert generated == 5 * len(BODIES) * 3
    assert again == first
    info = proxy.info()
    assert info["memory_bytes"] < 8_000 < info["file_bytes"]
    assert info["total_responses"] == generated
    assert proxy.stop() == 0
    proxy = start_proxy(simulator.url, *options)
    assert [heard(path, ask(proxy, path, body)) for path, body in calls] == first
    assert simulator.samples == generated
    assert "Traceback" not in proxy.log


def test_least_recently_used(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What has not been asked for the longest goes first."""
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


@forms
def test_expiry(form: Any, simulator: Simulator, start_proxy: StartProxy) -> None:
    """An answer that is too old is not given, even where its like was given before."""
    ttl = 1.5
    proxy = start_proxy(simulator.url, "--ttl", f"{ttl}s")

    def in_time() -> str:
        """What becomes of two calls once nothing is there; nothing if the first answer may have
        been too old for the second call already."""
        until(lambda: kind(proxy, "a", n=2, **form) == "M")
        began = time.monotonic()
        found = kinds(proxy, "a", "a", n=2, **form)
        return found if time.monotonic() < began + ttl else ""

    for _ in range(2):
        assert until(in_time) == "MH"


def test_beside_the_owner(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A proxy that only reads uses the folder of another, and does not spoil it."""
    owner = start_proxy(simulator.url)
    assert kinds(owner, "a") == "M"
    until(lambda: owner.stats()["pending_writes"] == 0)
    second = start_proxy(simulator.url, "--readonly")
    assert kinds(second, "a", "b", "b") == "HMM"
    assert kinds(owner, "b") == "M"
    assert until(lambda: kind(second, "b") == "H")
    cleared = requests.post(f"{second.url}/cache/clear", timeout=60)
    assert cleared.status_code >= 400
    assert "--readonly" in cleared.text
    assert requests.post(f"{owner.url}/cache/clear", timeout=60).status_code == 200
    assert until(lambda: kind(second, "a") + kind(second, "b") == "MM")
    assert second.stop() == owner.stop() == 0
    assert "Traceback" not in second.log


def test_a_second_owner(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Who wants a folder that is in use is told who has it."""
    owner = start_proxy(simulator.url)
    second = start_proxy(simulator.url, ready=False)
    assert second.process.wait(40) == 1
    assert f"is in use by process {owner.process.pid};" in second.log
    assert len(second.log.splitlines()) == 1


def warnings(proxy: Proxy) -> list[str]:
    return [line for line in proxy.log.splitlines() if "cache.jsonl" in line]


def test_disk_full(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Clients do not hear of a full disk; what comes meanwhile is kept, in its order."""
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
    """Where the file or folder is removed, what comes goes to a new one."""
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
    assert until(lambda: path.exists() and proxy.stats()["pending_writes"] == 0)
    assert until(lambda: len(warnings(proxy)) == 1)
    second = start_proxy(simulator.url, ready=False)
    assert second.process.wait(40) == 1, "the folder is still ours"
    assert proxy.stop() == 0
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a", "b", "c", "old") == "HHHM", "the model has changed since"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress(is_terminal: bool, simulator: Simulator, tmp_path: Path) -> None:
    """Who starts with a large cache on a terminal sees how far it is; a log has none of that."""
    sample = Sample(b"{}", 1.0, 0.5, 1)
    lines = (encode(Addition(n.to_bytes(32), "generate", b"", [sample])) for n in range(45_000))
    (tmp_path / "cache.jsonl").write_bytes(b"".join(lines))
    reader, writer = os.openpty() if is_terminal else os.pipe()
    arguments = ["--sglang-url", simulator.url, "--port", "0", "--cache-path", str(tmp_path)]
    process = starter().start(
        [str(COMMAND), "start", *arguments], tmp_path, dict(os.environ), stderr=writer
    )
    os.close(writer)
    assert process.stdout
    with process.stdout:
        banner = iter(process.stdout.readline, b"")
        assert any(b"45000 entries" in line for line in banner)
        process.terminate()
        assert process.wait(40) == 0
    said = b""
    with suppress(OSError):  # where a terminal has come to its end
        while data := os.read(reader, 65536):
            said += data
    os.close(reader)
    shown = re.findall(rb"\r\x1b\[Kreading the cache: (\d+)%", said)
    assert shown == ([b"44", b"89"] if is_terminal else [])
    assert said.count(b"\x1b[K") == (3 if is_terminal else 0), "it is not taken away at the end"


@pytest.mark.parametrize("creates", [True, False])
def test_rotated(creates: bool, simulator: Simulator, start_proxy: StartProxy) -> None:
    """When logrotate takes the file away, all that is stored goes to a new one."""
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a") == "M"
    assert until(lambda: proxy.stats()["pending_writes"] == 0)
    path = Path(proxy.stats()["cache_file"])
    path.rename(path.with_name("cache.jsonl.1"))
    if creates:
        path.touch()
    assert kinds(proxy, "b") == "M"
    assert until(lambda: "was renamed" in proxy.log)
    path.with_name("cache.jsonl.1").unlink()
    assert kinds(proxy, "c") == "M"
    assert proxy.stop() == 0
    names = {p.name for p in path.parent.iterdir()}
    assert names == {"cache.jsonl", "cache.lock", "runs.jsonl", "state.json"}
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a", "b", "c") == "HHH"


def test_for_its_owner_alone(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Nobody else on the machine can read prompts and answers, also those of former releases."""
    proxy = start_proxy(simulator.url)
    kinds(proxy, "a")
    folder = Path(proxy.stats()["cache_file"]).parent
    assert proxy.stop() == 0

    def modes() -> set[int]:
        return {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}

    assert modes() == {0o600, 0o700}
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path == folder else 0o644)
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a") == "H"
    assert proxy.log.count("others could read what is in it") == 1
    assert modes() == {0o600, 0o700}


def test_overwritten(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Who wants to begin anew is told what went, and not answered from it."""
    proxy = start_proxy(simulator.url)
    kinds(proxy, "a", "b")
    assert proxy.stop() == 0
    proxy = start_proxy(simulator.url, "--overwrite-cache")
    assert "2 entries (2 samples) were removed" in proxy.log
    assert "(0 entries, 0 samples)" in proxy.banner
    assert kinds(proxy, "a", "a") == "MH"
    assert proxy.stop() == 0
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a", "b") == "HM"


def test_from_the_original(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A cache of the original is moved aside, with one warning."""
    folder = tmp_path / "original"
    folder.mkdir()
    lines = [{"key": f"{n}", "request": {"text": "a"}, "responses": ["b"]} for n in range(500)]
    data = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "cache.jsonl").write_text(data)
    proxy = start_proxy(simulator.url, "--cache-path", str(folder))
    assert kinds(proxy, "a") == "M"
    assert (folder / "cache.jsonl.original").read_text() == data
    assert proxy.log.count("cache.jsonl.original") == 1
    assert "line skipped" not in proxy.log


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="of Linux alone")
def test_ended_with_a_full_disk(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Who ends a proxy whose disk is full is told what is lost, by the exit code as well."""
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a") == "M"
    assert until(lambda: proxy.stats()["pending_writes"] == 0)
    size = Path(proxy.stats()["cache_file"]).stat().st_size
    _, hard = resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, (size, hard))
    assert kinds(proxy, "b", "c") == "MM"
    assert kinds(proxy, "b", "c") == "HH", "what waits for the disk is answered"
    assert proxy.stop() == 1
    assert "2 samples could not be written and are lost: File too large" in proxy.log
    proxy = start_proxy(simulator.url)
    assert kinds(proxy, "a", "b") == "HM"


def test_a_large_answer(start_proxy: StartProxy) -> None:
    """All of an answer is kept that is larger than what may wait for the disk, and others' hits do
    not wait for it."""
    numbers = [[-0.123456789, n, None] for n in range(300)]
    meta: dict[str, Any] = {"id": "i", "finish_reason": {"type": "stop"}, "prompt_tokens": 1}
    meta |= {"completion_tokens": 9, "output_token_logprobs": numbers}
    sample = json.dumps({"text": "", "thought": "x" * 60_000, "meta_info": meta})
    count = (66 << 20) // len(sample)
    large = [sample.replace('""', f'"{n}"', 1) for n in range(count)]
    answer = {"status": 200, "headers": [["Content-Type", "application/json"]], "body": sample}
    with replaying() as upstream:
        upstream.pair = {"response": answer}
        proxy = start_proxy(upstream.url)
        assert kinds(proxy, "small", "small") == "MH"
        upstream.pair = {"response": {**answer, "body": f"[{','.join(large)}]"}}
        with hitting(proxy, asking(GENERATE, "small")) as seconds:
            body = asking(GENERATE, "large", count)
            first = post(proxy, GENERATE, body, timeout=90)
            assert "stored" in first.headers["Cache-Status"]
            assert until(lambda: proxy.stats()["total_responses"] == count + 1, 60)
        assert first.content == f"[{','.join(large)}]".encode()
        assert max(seconds) < 2
        assert proxy.stop() == 0
        upstream.pair = {"response": answer}  # also to who asks whether a client may generate
        proxy = start_proxy(upstream.url)
        assert f"{count + 1} samples" in proxy.banner
        again = post(proxy, GENERATE, body, timeout=90)
        assert again.headers["X-Cache"] == "HIT"

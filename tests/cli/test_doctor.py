"""`sglang-cached doctor`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from sglang_cached_addon.cli import main
from tests.cli.typed import typed
from tests.conftest import HAS_TOKEN, Proxy, StartProxy
from tests.ports import free_port
from tests.redis import RedisServer, needs_redis
from tests.simulator import Simulator
from tests.tables import each

CHECKS = ["python", "mitmproxy", "lane", "folder", "disk", "lock", "files", "upstream", "version",
          "accepts", "clock"]  # fmt: skip


def checks(*arguments: str, cache: Path, code: int = 0) -> dict[str, Any]:
    """The findings in JSON, by check."""
    done = typed("doctor", "--json", *arguments, cache=cache)
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["state"] == "fail") is bool(code)
    return {each["check"]: each for each in found["checks"]}


def test_before_a_start(simulator: Simulator, tmp_path: Path) -> None:
    """Without a proxy, all that a start needs is looked at, and nothing is made."""
    cache = tmp_path / "cache"
    found = checks("--sglang-url", simulator.url, cache=cache)
    assert list(found) == CHECKS
    assert found["upstream"]["text"].startswith(f"{simulator.url} answers, and has ")
    assert found["version"]["text"] == "SGLang 0.5.23."
    assert found["lock"]["text"] == "No process has the folder."
    assert ("no token" in found["mitmproxy"]["text"]) is not HAS_TOKEN
    assert not cache.exists()


def test_lane(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A running proxy tells itself why its fast lane is off."""
    proxy = start_proxy(simulator.url, "--set", "sglang_express=false")
    found = checks(cache=tmp_path / "cache")
    assert found["lane"]["state"] == "warn"
    assert found["lane"]["text"] == "The fast lane is off: sglang_express is false."
    assert proxy.info()["lane_off"] == "sglang_express is false"


def test_beside_a_proxy(simulator: Simulator, proxy: Proxy, tmp_path: Path) -> None:
    """Beside a running proxy, its server is found, and the proxy goes on as before."""
    before = proxy.info()
    found = checks(cache=tmp_path / "cache")
    assert found["upstream"]["text"].startswith(simulator.url)
    assert found["lock"]["text"] == (
        f"Process {proxy.process.pid} has the folder, and answers at {proxy.url}."
    )
    assert found["files"]["text"].startswith(f"Process {proxy.process.pid} ")
    assert found["folder"]["state"] == found["lane"]["state"] == "ok"
    after = proxy.info()
    assert (after["num_keys"], after["misses"]) == (before["num_keys"], before["misses"])


def test_after_a_proxy(simulator: Simulator, proxy: Proxy, tmp_path: Path) -> None:
    """The folder itself tells which server its answers are of; a server that is gone fails."""
    assert proxy.stop() == 0
    assert checks(cache=tmp_path / "cache")["upstream"]["text"].startswith(simulator.url)
    dead = f"http://127.0.0.1:{free_port()}"
    found = checks("--sglang-url", dead, cache=tmp_path / "cache", code=1)
    assert "cannot be reached" in found["upstream"]["text"]


def test_for_people(tmp_path: Path) -> None:
    """Each finding is a line, with what to do beneath it where there is something to do."""
    done = CliRunner().invoke(main, ["doctor", "--cache-path", str(tmp_path / "cache")])
    assert done.exit_code == 0
    lines = done.output.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("warn  upstream"))
    assert lines[at].endswith("No server is named.")
    assert lines[at + 1].strip() == "Name it: --sglang-url URL."


@each("url", ["http://me:secret@localhost:1", "ftp://x"])
def test_mistyped(url: str) -> None:
    """A URL that is none is a usage error, without the secrets in it."""
    done = CliRunner().invoke(main, ["doctor", "--sglang-url", url])
    assert done.exit_code == 2
    assert "--sglang-url" in done.output and "secret" not in done.output


@needs_redis
def test_redis(tmp_path: Path) -> None:
    """A shared store that answers is fine, and one that does not fails; no password is told."""
    server = RedisServer(tmp_path)
    try:
        done = CliRunner().invoke(main, ["doctor", "--store", server.url])
        assert done.exit_code == 0
        assert f"ok    redis      {server.url} answers, and is version " in done.output
    finally:
        server.stop()
    away = f"redis://:secret@{server.url.removeprefix('redis://')}"
    done = CliRunner().invoke(main, ["doctor"], env={"SGLANG_CACHED_STORE": away})
    assert done.exit_code == 1
    assert f"fail  redis      {server.url}: " in done.output and "secret" not in done.output

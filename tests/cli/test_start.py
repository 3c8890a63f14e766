"""`sglang-cached start`: options, their environment variables, and what is said of mistakes."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest
import requests

from tests.certificates import self_signed
from tests.conftest import COMMAND, Proxy, StartProxy, corpus, end, starter, until
from tests.ports import dead_url, free_port
from tests.proxy.test_lifetime import line_of
from tests.replayer import replaying
from tests.simulator import Simulator
from tests.tables import each

TOKEN = "token-of-the-admin"
GENERATE = {"text": "one", "sampling_params": {"temperature": 0.9}}


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end; one that goes on is ended."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_CACHED_")}
    with open(cwd / "err", "w+") as err:
        process = starter().start(
            [str(COMMAND), *arguments], cwd, kept | environment, stderr=err.fileno()
        )
        assert process.stdout
        with process.stdout:
            try:
                code = process.wait(90)
            finally:
                process.kill()
            out = process.stdout.read().decode()
    return subprocess.CompletedProcess(arguments, code, out, (cwd / "err").read_text())


# Options from the environment


SHOWN = {
    # variables, their values, and what the proxy says that it runs with
    "REPLAY_TOKENS_PER_SECOND": ("1000", "replay_tokens_per_second", 1000),
    "MODE": ("readwrite", "mode", "readwrite"),
    "NO_COLLAPSE": ("1", "collapse", False),
    "ISOLATE_BY_CREDENTIAL": ("1", "isolate_by_credential", True),
    "KEY_HEADER": ("X-One x-two", "key_headers", ["x-one", "x-two"]),
    "POLL_SECONDS": ("7.5", "poll_seconds", 7.5),
    "FSYNC": ("always", "fsync", "always"),
    "MAX_ENTRIES": ("1000", "max_entries", 1000),
    "MAX_BYTES": ("1.5G", "max_bytes", 3 << 29),
    "TTL": ("7d", "ttl_seconds", 7 * 86_400),
    "MEMORY": ("64MiB", "memory_bytes", 64 << 20),
    "READONLY": ("0", "readonly", False),
}


def test_environment(tmp_path: Path) -> None:
    """A proxy that is set up by its environment alone runs as it says, and tells no secret."""
    (tmp_path / "script.py").write_text(
        "def response(flow):\n    flow.response.headers['X-Script'] = 'was here'\n"
    )
    port, web_port = free_port(), free_port()
    with replaying(self_signed(tmp_path)) as replayer, ExitStack() as stack:
        (replayer.pair,) = corpus("generate-n1")
        upstream = replayer.url.replace("http:", "https:")
        environment = {
            "SGLANG_URL": upstream,
            "PORT": str(port),
            "HOST": "127.0.0.1",
            "CACHE_PATH": str(tmp_path / "kept"),
            "QUIET": "1",
            "ADMIN_TOKEN": TOKEN,
            "STORE": f"redis://:secret@127.0.0.1:{free_port()}/0",
            "INSECURE": "true",
            "WEB": "yes",
            "SCRIPT": "script.py",
            "SET": f"confdir={tmp_path} body_size_limit=1k web_port={web_port}",
            **{name: value for name, (value, _, _) in SHOWN.items()},
        }
        variables = {f"SGLANG_CACHED_{name}": value for name, value in environment.items()}
        proxy = Proxy([], tmp_path, executed=True, env=variables)
        stack.callback(end, proxy)
        proxy.wait_until_ready()
        answers = []
        for text in ("one", "one", "word " * 1000):
            body = {**GENERATE, "text": text}
            answers.append(requests.post(f"{proxy.url}/generate", json=body, timeout=60))
            # Answered when what came before is stored.
            proxy.stats()
        info, refused = (
            requests.get(
                f"{proxy.url}/cache/info", headers={"Authorization": f"Bearer {token}"}, timeout=20
            )
            for token in (TOKEN, "wrong")
        )
        assert f":{web_port}/" in line_of(proxy, "web")
        banner, log = proxy.banner, proxy.log
    assert f"upstream   {upstream}\n" in banner
    assert f"listening  http://127.0.0.1:{port}\n" in banner
    assert (tmp_path / "kept" / "cache.jsonl").is_file()
    assert [answer.headers.get("X-Cache") for answer in answers[:2]] == ["MISS", "HIT"]
    assert answers[0].headers["X-Script"] == "was here"
    assert answers[2].status_code == 413
    assert (info.status_code, refused.status_code) == (200, 401)
    assert info.json()["lane_off"] == "there is a body_size_limit"
    settings = info.json()["settings"]
    for name, (_, member, value) in SHOWN.items():
        assert settings[member] == value, name
    assert "redis://127.0.0.1:" in banner
    assert settings["store"].endswith("/0")
    assert "[Cache" not in log
    for text in (banner, log, info.text, refused.text):
        assert TOKEN not in text
        assert "secret" not in text


def test_command_line_wins(simulator: Simulator, tmp_path: Path) -> None:
    """What is typed counts more than what is set somewhere."""
    done = run(
        "start", "--sglang-url", "ftp://typed", cwd=tmp_path, SGLANG_CACHED_SGLANG_URL=simulator.url
    )
    assert done.returncode == 1
    assert "ftp://typed" in done.stderr


# Mistakes


@dataclass(frozen=True)
class World:
    """What is there to be stumbled over."""

    taken: int
    """A port that somebody listens on."""
    file: Path
    folder: Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "file").write_text("")
    (tmp_path / "torn" / "cache.jsonl.torn").mkdir(parents=True)
    (tmp_path / "torn" / "cache.jsonl").write_text("torn")
    (tmp_path / "torn").chmod(0o700)
    (tmp_path / "torn" / "cache.jsonl").chmod(0o600)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield World(listener.getsockname()[1], tmp_path / "file", tmp_path)


MISTAKES: list[tuple[str, list[str]]] = [
    ("--port {w.taken}", ["127.0.0.1:{w.taken}", "in use", "--port"]),
    ("--port 65536", ["65536", "--port"]),
    ("--port -1", ["-1", "--port"]),
    ("--host 192.0.2.1", ["192.0.2.1"]),
    ("--host no-such-host.invalid", ["no-such-host.invalid"]),
    ("--sglang-url ftp://localhost:1", ["ftp://localhost:1", "http://localhost:30000"]),
    ("--sglang-url http://me:secret@localhost:1", ["--sglang-url", "credentials"]),
    ("--cache-path {w.file}", ["{w.file}", "--cache-path"]),
    ("--cache-path=", ["must name a folder"]),
    ("--cache-path ~no_such_user/x", ["~no_such_user"]),
    ("--cache-path {w.folder}/torn", ["cache.jsonl"]),
    ("-s missing.py", ["missing.py", "no such file"]),
    ("-s {w.folder}", ["{w.folder}"]),
    ("-s {w.folder}/missing.py --set x=1", ["missing.py"]),
    ("-s ~no_such_user/x.py", ["~no_such_user"]),
    ("--set no_such_option=1", ["no_such_option"]),
    ("--set web_port=1", ["web_port"]),
    ("--set body_size_limit=much", ["body_size_limit", "much"]),
    ("--set listen_port=x", ["listen_port", "x"]),
    ("--set mode=regular", ["upstream"]),
    ("--set sglang_mode=odd", ["sglang_mode", "odd", "readonly"]),
    ("--set sglang_poll_seconds=0", ["sglang_poll_seconds", "0.1"]),
    ("--max-bytes much", ["sglang_max_bytes", "much"]),
    ("--store http://:secret@host", ["--store", "redis", "unix"]),
    ("--store redis://:secret@host:port", ["--store", "redis"]),
    ("--set sglang_store=redis://host/secret", ["--store", "redis://HOST:6379/0"]),
    ("--readonly", ["cache.jsonl", "--readonly", "--cache-path"]),
    ("--drain 5 --drain-accept 6", ["--drain-accept", "--drain"]),
    ("--overwrite-cache --readonly", ["sglang_overwrite_cache", "/cache/clear"]),
    ("--web --set web_port={w.taken} --set confdir={w.folder}",
     ["{w.taken}", "web_port"]),
    ("--web --set web_port=x --set confdir={w.folder}", ["web_port"]),
]  # fmt: skip


@each(("arguments", "words"), MISTAKES)
def test_mistake(arguments: str, words: list[str], world: World, tmp_path: Path) -> None:
    """A mistake is one line that says what is wrong and what to do, and nothing runs."""
    if "--web" in arguments and "=x" in arguments:
        need_port(8081)
    done = run(
        "start", "--sglang-url", dead_url(), "--host", "127.0.0.1", "--port", "0",
        "--cache-path", mkdtemp(dir=tmp_path), *arguments.format(w=world).split(),
        cwd=tmp_path,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("sglang-cached: ")
    for word in words:
        assert word.format(w=world) in done.stderr
    assert "secret" not in done.stderr


WRONG: list[tuple[list[str], dict[str, str], list[str]]] = [
    (["--mode", "odd"], {}, ["--mode", "odd", "readonly"]),
    ([], {"SGLANG_CACHED_MODE": "odd"}, ["--mode", "odd", "readonly"]),
    (["--poll-seconds", "0"], {}, ["--poll-seconds", "0.1"]),
    (["--fsync", "x"], {}, ["--fsync", "always"]),
    ([], {"SGLANG_CACHED_DRAIN": "soon"}, ["--drain", "soon"]),
    ([], {"SGLANG_CACHED_DRAIN_ACCEPT": "-1"}, ["--drain-accept", "-1"]),
    (["--no-such-option"], {}, ["--no-such-option"]),
]


@each(("arguments", "environment", "words"), WRONG)
def test_wrong_value(
    arguments: list[str], environment: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    """A mistyped value is refused by the name of its flag."""
    done = run("start", "--sglang-url", dead_url(), *arguments, cwd=tmp_path, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def need_port(port: int) -> None:
    """Skips where somebody else has it."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            pytest.skip(f"port {port} is taken")


def test_unknown_option_beside_a_script(
    simulator: Simulator, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """A mistyped option is noticed beside a script, too."""
    (tmp_path / "script.py").write_text("")
    proxy = start_proxy(simulator.url, "-s", "script.py", "--set", "no_such_option=1", ready=False)
    until(lambda: "no_such_option" in proxy.log)
    assert "Traceback" not in proxy.log


def test_folder_in_use(proxy: Proxy, tmp_path: Path) -> None:
    """No two proxies share a folder, and it is said which one has it."""
    done = run(
        "start", "--sglang-url", dead_url(), "--port", "0", "--host", "127.0.0.1",
        "--cache-path", str(tmp_path / "cache"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"in use by process {proxy.process.pid};" in line
    assert "--cache-path" in line
    assert proxy.stats()["num_keys"] == 0


def test_no_url(tmp_path: Path) -> None:
    """Without an upstream the command says what it wants."""
    done = run("start", cwd=tmp_path)
    assert done.returncode == 2
    assert "--sglang-url" in done.stderr
    assert "Traceback" not in done.stderr

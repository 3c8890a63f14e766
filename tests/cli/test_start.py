"""`sglang-cached start`: options, their environment variables, and what is said of mistakes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from sglang_cached_addon import __version__
from sglang_cached_addon.proxy.checks import has_token
from sglang_cached_addon.proxy.start import FLAGS
from tests.certificates import self_signed
from tests.conftest import COMMAND, Proxy, StartProxy, corpus, starter, until
from tests.replayer import Replayer
from tests.simulator import Simulator
from tests.tables import each
from tests.upstream.scripted import dead_url

TOKEN = "token-of-the-admin"
HAS_TOKEN = has_token()
NO_TOKEN = ["--web", "read requests", "mitmproxy 11.1.2 or newer", "Python 3.12 or newer"]
"""What is said where mitmweb would be open to every user of the machine."""
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
                code = process.wait(20)
            finally:
                process.kill()
            out = process.stdout.read().decode()
    return subprocess.CompletedProcess(arguments, code, out, (cwd / "err").read_text())


# Help


@each("flag", ["-h", "--help"])
def test_help(flag: str, tmp_path: Path) -> None:
    """The command says which others there are."""
    done = run(flag, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("start", "demo", "simulate"):
        assert re.search(rf"^  {command}  +\S+", done.stdout, re.M)


@each("command", ["start", "demo", "simulate"])
def test_help_of_a_command(command: str, tmp_path: Path) -> None:
    """Each command says what it does."""
    done = run(command, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: sglang-cached {command}")
    assert re.search(r"^  \w.*\.$", done.stdout, re.M)


def test_help_of_start(tmp_path: Path) -> None:
    """The help names each flag and its environment variable."""
    text = run("start", "--help", cwd=tmp_path).stdout
    for flag in FLAGS:
        assert flag.long in text
        assert flag.variable in text
    for default in ("30001", "0.0.0.0", "~/.sglang_cache"):
        assert default in text


def test_version(tmp_path: Path) -> None:
    """The command tells its version."""
    assert __version__ in run("--version", cwd=tmp_path).stdout


# Options from the environment


@dataclass
class Configured:
    """A proxy that has all its settings from the environment."""

    banner: str
    log: Callable[[], str]
    port: int
    web_port: int
    cache: Path
    upstream: str
    first: requests.Response
    second: requests.Response
    large: requests.Response
    info: requests.Response
    refused: requests.Response


def free_port() -> int:
    port = urlsplit(dead_url()).port
    assert port
    return port


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Configured]:
    folder = tmp_path_factory.mktemp("environment")
    (folder / "script.py").write_text(
        "def response(flow):\n    flow.response.headers['X-Script'] = 'was here'\n"
    )
    replayer = Replayer()
    (replayer.pair,) = corpus("generate-n1")
    replayer.socket = self_signed(folder).wrap_socket(replayer.socket, server_side=True)
    thread = threading.Thread(target=replayer.serve_forever, args=(0.01,))
    thread.start()
    port, web_port = free_port(), free_port()
    web = f" web_port={web_port}" if HAS_TOKEN else ""
    upstream = replayer.url.replace("http:", "https:")
    environment = {
        "SGLANG_CACHED_SGLANG_URL": upstream,
        "SGLANG_CACHED_PORT": str(port),
        "SGLANG_CACHED_HOST": "127.0.0.1",
        "SGLANG_CACHED_CACHE_PATH": str(folder / "kept"),
        "SGLANG_CACHED_QUIET": "1",
        "SGLANG_CACHED_REPLAY_TOKENS_PER_SECOND": "1000",
        "SGLANG_CACHED_MODE": "readwrite",
        "SGLANG_CACHED_NO_COLLAPSE": "1",
        "SGLANG_CACHED_ISOLATE_BY_CREDENTIAL": "1",
        "SGLANG_CACHED_KEY_HEADER": "X-One x-two",
        "SGLANG_CACHED_ADMIN_TOKEN": TOKEN,
        "SGLANG_CACHED_POLL_SECONDS": "7.5",
        "SGLANG_CACHED_STORE": f"redis://:secret@127.0.0.1:{free_port()}/0",
        "SGLANG_CACHED_FSYNC": "always",
        "SGLANG_CACHED_MAX_ENTRIES": "1000",
        "SGLANG_CACHED_MAX_BYTES": "1.5G",
        "SGLANG_CACHED_TTL": "7d",
        "SGLANG_CACHED_MEMORY": "64MiB",
        "SGLANG_CACHED_READONLY": "0",
        "SGLANG_CACHED_INSECURE": "true",
        "SGLANG_CACHED_WEB": "yes" if HAS_TOKEN else "no",
        "SGLANG_CACHED_SCRIPT": "script.py",
        "SGLANG_CACHED_SET": f"confdir={folder} body_size_limit=1k{web}",
        "PYTHONUNBUFFERED": "1",
    }
    with (
        open(folder / "err", "w") as err,
        subprocess.Popen(
            [str(COMMAND), "start"],
            stdout=subprocess.PIPE,
            stderr=err,
            cwd=folder,
            env=os.environ | environment,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout
            banner = ""
            while not re.search(rf"^  {'web' if HAS_TOKEN else 'cache'} .*\n", banner, re.M):
                line = process.stdout.readline()
                assert line, (folder / "err").read_text()
                banner += line
            proxy = f"http://127.0.0.1:{port}"
            answers = []
            for text in ("one", "one", "word " * 1000):
                body = {**GENERATE, "text": text}
                answers.append(requests.post(f"{proxy}/generate", json=body, timeout=20))
                # Answered when what came before is stored.
                requests.get(f"{proxy}/cache/stats", timeout=20)
            first, second, large = answers
            info, refused = (
                requests.get(
                    f"{proxy}/cache/info",
                    headers={"Authorization": f"Bearer {token}"},
                    timeout=20,
                )
                for token in (TOKEN, "wrong")
            )
            yield Configured(
                banner, (folder / "err").read_text, port, web_port, folder / "kept", upstream,
                first, second, large, info, refused,
            )  # fmt: skip
        finally:
            process.kill()
            replayer.shutdown()
            thread.join()
            replayer.server_close()


def setting(name: str, value: Any) -> Callable[[Configured], bool]:
    """Whether the proxy says that it runs with this value."""
    return lambda c: c.info.json()["settings"][name] == value


CHECKS: dict[str, Callable[[Configured], bool]] = {
    "SGLANG_URL": lambda c: f"upstream   {c.upstream}\n" in c.banner,
    "PORT": lambda c: f":{c.port}\n" in c.banner,
    "HOST": lambda c: "listening  http://127.0.0.1:" in c.banner,
    "CACHE_PATH": lambda c: (c.cache / "cache.jsonl").is_file(),
    "QUIET": lambda c: "[Cache" not in c.log(),
    "INSECURE": lambda c: (
        (c.first.headers["X-Cache"], c.second.headers["X-Cache"]) == ("MISS", "HIT")
    ),
    "WEB": lambda c: ("  web " in c.banner) is HAS_TOKEN,
    "SCRIPT": lambda c: c.first.headers["X-Script"] == "was here",
    "REPLAY_TOKENS_PER_SECOND": setting("replay_tokens_per_second", 1000),
    "MODE": setting("mode", "readwrite"),
    "NO_COLLAPSE": setting("collapse", False),
    "ISOLATE_BY_CREDENTIAL": setting("isolate_by_credential", True),
    "KEY_HEADER": setting("key_headers", ["x-one", "x-two"]),
    "POLL_SECONDS": setting("poll_seconds", 7.5),
    "STORE": lambda c: (
        c.info.json()["settings"]["store"].endswith("/0")
        and "redis://127.0.0.1:" in c.banner
        and "secret" not in c.info.text + c.banner + c.log()
    ),
    "FSYNC": setting("fsync", "always"),
    "MAX_ENTRIES": setting("max_entries", 1000),
    "MAX_BYTES": setting("max_bytes", 3 << 29),
    "TTL": setting("ttl_seconds", 7 * 86_400),
    "MEMORY": setting("memory_bytes", 64 << 20),
    "READONLY": setting("readonly", False),
    "OVERWRITE_CACHE": setting("overwrite_cache", False),
    "ADMIN_TOKEN": lambda c: (c.info.status_code, c.refused.status_code) == (200, 401),
    "SET": lambda c: c.large.status_code == 413 and (f":{c.web_port}/" in c.banner) is HAS_TOKEN,
}


@each("name", CHECKS)
def test_environment(name: str, configured: Configured) -> None:
    """A proxy that is set up by its environment alone runs as it says."""
    assert CHECKS[name](configured)


def test_no_secret_is_told(configured: Configured) -> None:
    """The token is neither in the log nor in what the proxy says of itself."""
    for text in (
        configured.banner,
        configured.log(),
        configured.info.text,
        configured.refused.text,
    ):
        assert TOKEN not in text


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
    ("--sglang-url http://", ["--sglang-url", "http://localhost:30000"]),
    ("--sglang-url http://localhost:1/v1", ["http://localhost:1/v1", "leave off"]),
    ("--sglang-url http://me:secret@localhost:1", ["--sglang-url", "credentials"]),
    ("--sglang-url http://localhost:65536", ["http://localhost:65536", "range"]),
    ("--sglang-url http://a..b:1", ["--sglang-url", "http://a..b:1"]),
    ("--cache-path {w.file}", ["{w.file}", "--cache-path"]),
    ("--cache-path {w.file}/cache", ["{w.file}/cache", "--cache-path"]),
    ("--cache-path=", ["must name a folder"]),
    ("--cache-path ~no_such_user/x", ["~no_such_user"]),
    ("--cache-path {w.folder}/torn", ["cache.jsonl"]),
    ("-s missing.py", ["missing.py", "no such file"]),
    ("-s {w.folder}", ["{w.folder}"]),
    ("-s {w.folder}/missing.py --set x=1", ["missing.py"]),
    ("-s ~no_such_user/x.py", ["~no_such_user"]),
    ("--set no_such_option=1", ["no_such_option"]),
    ("--set no_such_option", ["no_such_option"]),
    ("--set web_port=1", ["web_port"]),
    ("--set body_size_limit=much", ["body_size_limit", "much"]),
    ("--set listen_port=x", ["listen_port", "x"]),
    ("--set http2=maybe", ["http2"]),
    ("--set mode=regular", ["upstream"]),
    ("--set sglang_mode=odd", ["sglang_mode", "odd", "readonly"]),
    ("--set sglang_poll_seconds=0", ["sglang_poll_seconds", "0.1"]),
    ("--max-bytes much", ["sglang_max_bytes", "much"]),
    ("--ttl 5y", ["sglang_ttl", "5y", "w"]),
    ("--memory 0", ["sglang_memory", "above 0"]),
    ("--store http://:secret@host", ["--store", "redis", "unix"]),
    ("--store redis://:secret@host:port", ["--store", "redis"]),
    ("--set sglang_store=redis://host/secret", ["--store", "redis://HOST:6379/0"]),
    ("--readonly", ["cache.jsonl", "--readonly", "--cache-path"]),
    ("--readonly --mode refresh", ["sglang_readonly"]),
    ("--drain 5 --drain-accept 6", ["--drain-accept", "--drain"]),
    ("--overwrite-cache --readonly", ["sglang_overwrite_cache", "/cache/clear"]),
    ("--overwrite-cache --store redis://127.0.0.1:1", ["sglang_overwrite_cache"]),
    ("--set sglang_fsync=x", ["sglang_fsync", "interval"]),
    ("--set sglang_max_entries=-1", ["sglang_max_entries", "-1"]),
    ("--set sglang_replay_tokens_per_second=-1", ["sglang_replay_tokens_per_second"]),
    ("--web --set web_port={w.taken} --set confdir={w.folder}",
     ["{w.taken}", "web_port"] if HAS_TOKEN else NO_TOKEN),
    ("--web --set web_port=x --set confdir={w.folder}",
     ["web_port"] if HAS_TOKEN else NO_TOKEN),
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
    (["--poll-seconds", "x"], {}, ["--poll-seconds", "x"]),
    (["--replay-tokens-per-second", "-1"], {}, ["--replay-tokens-per-second", "-1"]),
    (["--fsync", "x"], {}, ["--fsync", "always"]),
    (["--max-entries", "-1"], {}, ["--max-entries", "-1"]),
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
    until(lambda: "no_such_option" in proxy.log, 20)
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

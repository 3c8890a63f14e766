"""What all commands have in common, seen at the installed command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sglang_cached_addon.cli.frame import Commands, about_a_cache, prints_json
from sglang_cached_addon.cli.output import Output
from sglang_cached_addon.cli.reach import CacheError
from sglang_cached_addon.store import StoreError
from tests.cli.typed import glanced_at
from tests.tables import each


@click.group(cls=Commands)
def group() -> None:
    """A group of commands."""


@each(
    ("error", "code", "said"),
    [
        (CacheError("cannot be reached"), 1, "Error: cannot be reached\n"),
        (StoreError("in use by process 1"), 1, "Error: in use by process 1\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "Error: /x/y: Permission denied\n"),
        (OSError("odd"), 1, "Error: odd\n"),
        (click.ClickException("so"), 1, "Error: so\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_errors(error: BaseException, code: int, said: str) -> None:
    """What goes wrong is told in a line, and is the exit code."""

    @group.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(group, ["fail"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, said, "")


def test_what_is_told(tmp_path: Path) -> None:
    """A command gets its cache and its output, and prints for people, or JSON."""

    @group.command()
    @about_a_cache()
    @click.argument("word")
    def tell(cache: object, output: Output, word: str) -> None:
        output.show({"word": word}, [f"the word is {word}"])

    (tmp_path / "cache.jsonl").touch()
    for more, said in (([], "the word is a\n"), (["--json"], '{"word":"a"}\n')):
        result = CliRunner().invoke(group, ["tell", "--cache-path", str(tmp_path), "a", *more])
        assert (result.exit_code, result.output) == (0, said)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.jsonl"]


def test_options_have_one_help() -> None:
    """The options that commands share are in each `--help`."""

    @group.command()
    @prints_json
    def count(output: Output) -> None:
        """Count."""

    assert "--json" in CliRunner().invoke(group, ["count", "--help"]).output


@pytest.mark.parametrize("is_json", [True, False])
def test_a_closed_pipe(is_json: bool, tmp_path: Path) -> None:
    """A reader that has seen enough ends the command, which says nothing of it."""
    (tmp_path / "cache.jsonl").write_text("x\n" * 50_000)
    glanced_at(tmp_path, "verify", *(["--json"] if is_json else []))


def test_ctrl_c(tmp_path: Path) -> None:
    """Ctrl+C ends a command without a word."""
    os.mkfifo(tmp_path / "fifo")
    code = (
        "import sys, click\n"
        "from sglang_cached_addon.cli import main\n"
        "@main.command()\n"
        "def wait():\n"
        "    print('waiting', flush=True)\n"
        "    open(sys.argv[2])\n"
        "sys.argv = ['sglang-cached', 'wait', *sys.argv[1:]]\n"
        "main(['wait'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "fifo")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"\n"
        assert process.wait(60) == 130


def test_help_is_there_at_once() -> None:
    """What takes long to import is not imported for what does not need it."""
    code = (
        "import json, sys\n"
        "from sglang_cached_addon.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    imported = {name.split(".")[0] for name in json.loads(done.stderr)}
    assert "click" in imported
    assert not imported & {"mitmproxy", "asyncio", "tornado", "openai", "pyarrow", "ssl"}

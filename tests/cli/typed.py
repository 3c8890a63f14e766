"""The installed command, as a user types it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tests.conftest import COMMAND, starter


def typed(
    *arguments: str, cache: Path | None = None, input: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, about the cache in that folder. It is forked for, unless it has
    something to read: four fifths of its time are imports."""
    command, env = [str(COMMAND), *arguments], surroundings(cache, **environment)
    if input:
        return subprocess.run(
            command, input=input, env=env, capture_output=True, text=True, timeout=90
        )
    with TemporaryFile() as out, TemporaryFile() as err:
        process = starter().start(
            command, Path.cwd(), env, stdout=out.fileno(), stderr=err.fileno()
        )
        try:
            code = process.wait(90)
        finally:
            process.kill()
        said = [file.seek(0) or file.read().decode() for file in (out, err)]
    return subprocess.CompletedProcess(command, code, *said)


def surroundings(cache: Path | None, **environment: str) -> dict[str, Any]:
    """The environment of a command that is about the cache in that folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_CACHED_")}
    named = {"SGLANG_CACHED_CACHE_PATH": str(cache)} if cache else {}
    return kept | named | environment


def glanced_at(cache: Path, *arguments: str) -> None:
    """Reads a byte of what a command prints and closes the pipe, which ends the command without a
    word."""
    with subprocess.Popen(
        [str(COMMAND), *arguments],
        env=surroundings(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1

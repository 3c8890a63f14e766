"""The installed command, as a user types it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import COMMAND


def typed(
    *arguments: str, cache: Path | None = None, input: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, about the cache in that folder."""
    return subprocess.run(
        [str(COMMAND), *arguments],
        input=input,
        env=surroundings(cache, **environment),
        capture_output=True,
        text=True,
        timeout=90,
    )


def surroundings(cache: Path | None, **environment: str) -> dict[str, Any]:
    """The environment of a command that is about the cache in that folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_CACHED_")}
    named = {"SGLANG_CACHED_CACHE_PATH": str(cache)} if cache else {}
    return kept | named | environment

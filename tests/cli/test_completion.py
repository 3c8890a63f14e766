"""Shells complete what is typed: commands, options and their values, by real shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_reach import stored
from tests.cli.typed import surroundings, typed
from tests.conftest import COMMAND, Proxy
from tests.tables import each

BASH = """
source <(sglang-cached completion bash)
complete -p sglang-cached >/dev/null || exit 9
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
compopt() { echo "$2"; }
_sglang_cached_completion sglang-cached
printf '%s\\n' "${COMPREPLY[@]}"
"""

ZSH = """
autoload -Uz compinit && compinit -D
eval "$(sglang-cached completion zsh)"
[[ $_comps[sglang-cached] == _sglang_cached_completion ]] || exit 9
compadd() { local name=$argv[-1]; print -l -- ${(P)name} }
_describe() { local name=$argv[3]; print -l -- ${(P)name} }
_files() { print default }
words=("$@"); CURRENT=$#
_sglang_cached_completion
"""

FISH = """
sglang-cached completion fish | source
complete --do-complete "$(string join ' ' -- $argv)" | string split -f 1 \\t; or true
"""


def completed(shell: str, *words: str, cache: Path | None = None) -> list[str]:
    """What a shell completes where the last word is being typed."""
    script = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    quiet = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    name = ["complete"] if shell != "fish" else []
    environment = surroundings(cache)
    done = subprocess.run(
        [shell, *quiet, "-c", script, *name, "sglang-cached", *words],
        env={**environment, "PATH": f"{COMMAND.parent}:{environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert (done.returncode, done.stderr) == (0, ""), (done.stderr, done.stdout)
    return [line.split(":")[0] for line in done.stdout.splitlines() if line]


SHELLS = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_and_values(shell: str) -> None:
    """A shell completes a command, an option, and one of its values."""
    assert completed(shell, "st") == ["start", "stats"]
    assert completed(shell, "start", "--mo") == ["--mode"]
    assert set(completed(shell, "start", "--mode", "o")) == {"offline", "off"}
    assert completed(shell, "completion", "b") == ["bash"]


def test_what_is_stored(proxy: Proxy, tmp_path: Path) -> None:
    """Models, runs and APIs are those of the cache, be it running or not; without a cache there
    are none, and no error."""
    folder = tmp_path / "cache"
    stored(proxy)
    for is_running in (True, False):
        if not is_running:
            assert proxy.stop() == 0
        assert completed("bash", "clear", "s", cache=folder) == ["simulated"]
        assert completed("bash", "clear", "--cache-path", str(folder), "s") == ["simulated"]
    assert completed("bash", "clear", "", cache=tmp_path / "none") == ["current", "other", "all"]


@each(
    ("words", "kind"),
    [
        (["verify", "--cache-path", "/t"], "default"),
        (["merge", "/t"], "default"),
        (["start", "-s", "/t"], "default"),
    ],
)
def test_files(words: list[str], kind: str) -> None:
    """Where a file or a folder is to be named, the shell completes it in its own way."""
    assert completed("bash", *words) == [kind]


def test_an_unknown_shell() -> None:
    """Another shell is refused, and the known ones are named."""
    done = typed("completion", "tcsh")
    assert done.returncode == 2
    assert "'bash', 'zsh', 'fish'" in done.stderr

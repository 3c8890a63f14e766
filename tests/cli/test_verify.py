"""`sglang-cached verify`: what it finds, what it mends, and what it leaves alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from sglang_cached_addon.cli import main
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.journal.lines import encode
from tests.tables import each

KEYS = tuple(letter * 32 for letter in (b"a", b"b", b"c"))
WHOLE = b"".join(
    encode(Addition(key, "chat", b"{}", [Sample(b'{"x":1}', 1.5, 0.5, 3)])) for key in KEYS
)


def run(command: str, folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [command, "--cache-path", str(folder), *arguments])


def stored(folder: Path, data: bytes) -> Path:
    path = folder / "cache.jsonl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", 0, ["0 entries, 0 samples, 0 bytes, 0 broken lines"]),
        (WHOLE, 0, [f"3 entries, 3 samples, {len(WHOLE)} bytes, 0 broken lines"]),
        (b'{"v":1}\n' + WHOLE, 0, ["1 lines of other versions"]),
        (b"x\n" + WHOLE, 1, ["cache.jsonl:1: ", "1 broken lines"]),
        (WHOLE.replace(b'"key":"62', b'"key":"63'), 1, [":2: wrong checksum", "2 entries"]),
        (WHOLE[:-1], 1, ["torn last line", "2 entries", "0 broken lines"]),
    ],
    ids=["empty", "whole", "old", "broken", "changed", "torn"],
)
def test_verify(data: bytes, code: int, says: list[str], tmp_path: Path) -> None:
    """Damage is noticed, and not made by looking for it."""
    path = stored(tmp_path, data)
    result = run("verify", tmp_path)
    assert result.exit_code == code, result.output
    assert all(words in result.output for words in says), result.output
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (data, [path])


def test_repair(tmp_path: Path) -> None:
    """What cannot be read is moved to files of its own."""
    first, *others = WHOLE.splitlines(keepends=True)
    path = stored(tmp_path, b'{"v":1}\nx\n' + first + b"".join(others)[:-5])
    result = run("verify", tmp_path, "--repair")
    assert result.exit_code == 0, result.output
    assert path.read_bytes() == first + others[0]
    assert (tmp_path / "cache.jsonl.v1").read_bytes() == b'{"v":1}\n'
    assert (tmp_path / "cache.jsonl.broken").read_bytes() == b"x\n"
    assert (tmp_path / "cache.jsonl.torn").read_bytes() == others[1][:-5] + b"\n"
    assert run("verify", tmp_path).exit_code == 0


def test_for_programs(tmp_path: Path) -> None:
    """All that is found is in one JSON object."""
    path = stored(tmp_path, b"x\n" + WHOLE[:-1])
    counts = {"entries": 2, "samples": 2, "broken_lines": 1, "lines_of_other_versions": 0}
    for arguments, code in (([], 1), (["--repair"], 0)):
        result = run("verify", tmp_path, "--json", *arguments)
        assert result.exit_code == code
        found = json.loads(result.output)
        assert found.items() >= {"path": str(path), "is_well": False, **counts}.items()
        assert found["is_repaired"] is bool(arguments)
        assert [fault["line"] for fault in found["faults"]] == [1]
    assert json.loads(run("verify", tmp_path, "--json").output)["is_well"] is True


def test_beside_a_proxy(tmp_path: Path) -> None:
    """What is being written is no damage, and is left to its writer."""
    path = stored(tmp_path, WHOLE)
    journal = Journal(tmp_path)
    try:
        path.write_bytes(WHOLE + b'{"v":2')
        result = run("verify", tmp_path)
        assert result.exit_code == 0, result.output
        assert "being written (6 bytes)" in result.output
        for command in (["verify", "--repair"], ["compact"]):
            result = run(command[0], tmp_path, *command[1:])
            assert result.exit_code == 1
            assert f"process {os.getpid()};" in result.output
        assert path.read_bytes() == WHOLE + b'{"v":2'
    finally:
        journal.close()


@pytest.mark.parametrize("command", ["verify", "compact"])
def test_no_cache(command: str, tmp_path: Path) -> None:
    """A folder without a cache is named, and nothing is made."""
    for folder in (tmp_path, tmp_path / "none"):
        result = run(command, folder)
        assert result.exit_code == 2
        assert str(folder) in result.output.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


@each("command", ["verify", "compact"])
def test_same_folder_as_start(command: str) -> None:
    """It looks at the proxy's cache by default."""
    options = []
    for name in ("start", command):
        option = next(o for o in main.commands[name].params if o.name == "cache_path")
        assert isinstance(option, click.Option)
        options.append((option.default, option.envvar))
    assert options[0] == options[1]

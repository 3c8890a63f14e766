"""`sglang-cached export` as data for others; what `import` takes is in `test_import_`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_cached_addon.core.cache import Addition, Sample
from tests.archive.test_writing import take
from tests.cli.test_ls import filled, settled
from tests.cli.test_merge import asked
from tests.cli.typed import glanced_at, surroundings, typed
from tests.conftest import Proxy

CHATS = ["beta", "epsilon", "Zeta?\x1b[31m"]


@pytest.fixture
def folder(proxy: Proxy, tmp_path: Path) -> Path:
    """A folder that a running proxy has filled; one entry has two samples, one is of token ids."""
    filled(proxy)
    asked(proxy, "beta", 2)
    body = {"input_ids": [1, 2], "sampling_params": {"temperature": 0.9, "max_new_tokens": 4}}
    assert proxy.session.post(f"{proxy.url}/generate", json=body, timeout=60).ok
    settled(proxy)
    return tmp_path / "cache"


def test_chats(folder: Path, tmp_path: Path) -> None:
    """A data set has a line for each sample, with what was sent and what was said."""
    file = tmp_path / "chats.jsonl"
    done = typed("export", "--as", "chat", str(file), cache=folder)
    assert done.stdout.startswith("6 entries, 7 samples\n1 entries have no text")
    found = [json.loads(line)["messages"] for line in file.read_bytes().splitlines()]
    assert len(found) == 7
    assert all([m["role"] for m in messages] == ["user", "assistant"] for messages in found)
    assert [m[0]["content"] for m in found].count("beta") == 2
    assert found[-1][0]["content"] in CHATS
    assert all(isinstance(m[1]["content"], str) for m in found)
    done = typed("export", "--as", "chat", "--text", "ZETA", cache=folder)
    assert [json.loads(line)["messages"][0]["content"] for line in done.stdout.splitlines()] == [
        "Zeta?\x1b[31m"
    ]
    assert done.stderr == "1 entries, 1 samples\n"


def test_parquet(folder: Path, tmp_path: Path) -> None:
    """A table has a row for each sample, which pyarrow reads."""
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "cache.parquet"
    done = typed("export", "--as", "parquet", str(file), "--json", cache=folder)
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(file).to_pylist()
    assert len(rows) == json.loads(done.stdout)["samples"] == 8
    beta = [row for row in rows if row["texts"] == ["beta"]]
    assert [(row["sample"], row["runs"]) for row in beta] == [(0, ["monday"]), (1, [])]
    assert json.loads(beta[0]["call"])["text"] == "beta"
    assert json.loads(beta[0]["answer"])["text"] == beta[0]["text"]
    assert beta[0]["stored_at"].tzinfo is not None


def test_without_pyarrow(folder: Path, tmp_path: Path) -> None:
    """Where pyarrow is missing, it is said how it is installed, and no file is made."""
    code = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from sglang_cached_addon.cli import main\n"
        "main(['export', '--as', 'parquet', sys.argv[1]])\n"
    )
    file = tmp_path / "cache.parquet"
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env=surroundings(folder),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "Error: Parquet needs pyarrow: pip install 'sglang-cached[parquet]'\n"
    assert not file.exists()


def test_a_closed_pipe(tmp_path: Path) -> None:
    """A reader that has seen enough ends the export, which says nothing of it."""
    answer = b'{"text":"%b"}' % (b"x" * 10_000)
    samples = [Sample(answer, float(number), 0.5, 1) for number in range(100)]
    take(tmp_path, Addition(b"a" * 32, "odd", b"{}", samples))  # more than a pipe holds
    glanced_at(tmp_path, "export")


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    """What nobody knows, and where nothing can be written, is told, and leaves no file."""
    before = sorted(tmp_path.iterdir())
    for arguments, code, said in (
        (["--model", "nobody", str(tmp_path / "x")], 1, "nobody"),
        (["--run", "tuesday", str(tmp_path / "x")], 1, "tuesday"),
        ([str(tmp_path / "none" / "x")], 1, "No such file"),
        ([str(tmp_path)], 2, "is a directory"),
        (["--as", "csv"], 2, "csv"),
    ):
        done = typed("export", *arguments, cache=folder)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert said in done.stderr
    assert sorted(tmp_path.iterdir()) == before

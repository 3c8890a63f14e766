"""The writer: whole clears, a disk that refuses, and a file that somebody cuts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import until
from tests.store.journal.opened import A, B, line, numbers, opened, pool, read, write


def test_clear(tmp_path: Path) -> None:
    """What was cleared is gone, in the file as well, which is cut, so that whoever follows it has
    the same file; what comes later stays. A clear just before the end is done."""
    write(tmp_path, line(A, b'{"x":0}'))
    (tmp_path / "cache.jsonl.new").write_bytes(b"left by a crash")
    path, wanted = tmp_path / "cache.jsonl", [line(A, b'{"x":2}'), line(B, b'{"x":3}')]
    before = path.stat().st_ino
    with opened(tmp_path) as journal:
        assert journal.lines
        for _ in range(2):
            journal.journal.clear().result(60)
            assert (path.stat().st_ino, path.stat().st_size) == (before, 0)
        journal.append(line(A, b'{"x":1}'))
        done = journal.journal.clear()
        journal.append(wanted[0])
        assert done.result(60) is None
        assert b'{"x":1}' not in path.read_bytes()
        journal.append(wanted[1])
    assert read(tmp_path) == wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache.jsonl", "cache.lock"]
    with opened(tmp_path) as journal:
        done = journal.journal.clear()
    assert done.done()
    assert read(tmp_path) == []


def test_clears_and_appends_in_turn(tmp_path: Path) -> None:
    """Clears and lines take effect in the order in which they came."""
    with opened(tmp_path) as journal:
        clears = []
        for n in range(50):
            journal.append(line(A, b'{"x":%d}' % n))
            clears.append(journal.journal.clear())
        journal.append(line(A, b'{"x":"last"}'))
        for done in clears:
            assert done.result(60) is None
    assert read(tmp_path) == [line(A, b'{"x":"last"}')]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_cancelled_clear(tmp_path: Path) -> None:
    """A caller that does not wait for its clear disturbs nobody."""
    wanted = line(A, b'{"x":"after"}')
    with opened(tmp_path) as journal:
        for _ in range(20):
            journal.journal.clear().cancel()
        journal.append(wanted)
    assert read(tmp_path) == [wanted]


# A disk that refuses

REFUSED = """
import json, logging, resource, signal, sys, time
from pathlib import Path
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.store.journal import Journal, writer as module

module.RETRY_SECONDS = 0.02
messages = []

class Note(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.getLogger().addHandler(Note())
folder, end = Path(sys.argv[1]), sys.argv[2]
path = folder / "cache.jsonl"
journal = Journal(folder)
journal.load()

def append(n, key=b"a" * 32):
    some = [Sample(b'{"x":%d}' % n, 1.5, 0.5, n)]
    journal.append(Addition(key, "chat", b"", some), journal.index.end(key))

def clear(key):
    before = journal.mark
    journal.forget(key)
    return journal.purge(before, lambda one: one == key)

append(0)
until(lambda: journal.pending == 0)
size = path.stat().st_size
limit(size + 1000)
for n in range(1, 101):
    append(n, b"ab"[n % 2:][:1] * 32 if end.startswith("part") else b"a" * 32)
until(lambda: messages)
attempts = set()
until(lambda: attempts.add(path.stat().st_mtime_ns) or len(attempts) > 3)
for n in range(101, 201):
    append(n)
least = []  # a refused batch of lines is taken back
until(lambda: least.append(path.stat().st_size - size) or min(least) == 0)
seen = {"pending": journal.pending}
if end == "recover":
    limit(resource.RLIM_INFINITY)
    until(lambda: journal.pending == 0)
elif end == "clear":
    journal.clear().result(60)
    seen["cleared"] = path.stat().st_size
    append(1000)
elif end == "compact":
    journal.compact().result(60)
    seen["compacted"] = path.stat().st_size
    limit(resource.RLIM_INFINITY)
    until(lambda: journal.pending == 0)
elif end == "delete":
    limit(size - 1)
    done = journal.delete(b"a" * 32)
    try:
        done.result(60)
    except StoreError as e:
        seen["error"] = str(e)
    append(1000)
    limit(resource.RLIM_INFINITY)
    until(lambda: journal.pending == 0)
elif end == "part":
    done = clear(b"a" * 32)
    append(1000)
    limit(resource.RLIM_INFINITY)
    done.result(60)
    until(lambda: journal.pending == 0)
elif end == "part-refused":
    limit(size - 1)
    try:
        clear(b"b" * 32).result(60)
    except StoreError as e:
        seen["error"] = str(e)
    seen["names"] = sorted(p.name for p in folder.iterdir())
    limit(resource.RLIM_INFINITY)
    append(1000)
    until(lambda: journal.pending == 0)
journal.close()
limit(resource.RLIM_INFINITY)
print(json.dumps({**seen, "messages": messages, "lost": journal.lost}))
"""


def refused(folder: Path, end: str) -> dict[str, Any]:
    """What a process saw whose file could not grow."""
    child = subprocess.run(
        [sys.executable, "-c", REFUSED, str(folder), end],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_disk_full_for_a_while(tmp_path: Path) -> None:
    """What came while the disk was full is written when it has room, and one line is logged."""
    seen = refused(tmp_path, "recover")
    assert (seen["pending"], seen["lost"]) == (200, 0)
    assert len(seen["messages"]) == 1
    assert str(tmp_path / "cache.jsonl") in seen["messages"][0]
    answers = [s.answer for _, _, samples in read(tmp_path) for s in samples]
    assert answers == [b'{"x":%d}' % n for n in range(201)]


def test_closed_while_disk_is_full(tmp_path: Path) -> None:
    """With a full disk the journal closes, says what is lost, and leaves the file whole."""
    seen = refused(tmp_path, "close")
    assert seen["lost"] == 200
    assert any("200 samples could not be written" in message for message in seen["messages"])
    with opened(tmp_path) as journal:
        answers = [s.answer for _, _, samples in journal.lines for s in samples]
        assert journal.loaded.skipped == journal.loaded.torn == 0
    assert answers == [b'{"x":0}']


def test_clear_while_disk_is_full(tmp_path: Path) -> None:
    """A clear of all needs no room."""
    seen = refused(tmp_path, "clear")
    assert seen["cleared"] == 0
    assert read(tmp_path)[0][2][0].answer == b'{"x":1000}'


def test_compact_while_disk_is_full(tmp_path: Path) -> None:
    """A compaction makes room while lines wait for it, and none of them is lost."""
    write(tmp_path, line(A, b'{"x":-2}'))
    (tmp_path / "cache.jsonl").write_bytes(b"broken\n" + (tmp_path / "cache.jsonl").read_bytes())
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":-1}'), slot=0)
    before = (tmp_path / "cache.jsonl").stat().st_size
    seen = refused(tmp_path, "compact")
    assert 0 < seen["compacted"] < before
    assert numbers(tmp_path) == [-1, *range(201)]


def test_deletion_while_disk_is_full(tmp_path: Path) -> None:
    """A deletion that the disk refuses is told of, and happens as soon as there is room: what
    waited is not written, and what came later is left."""
    seen = refused(tmp_path, "delete")
    assert str(tmp_path / "cache.jsonl") in seen["error"]
    assert seen["lost"] == 0
    with opened(tmp_path) as journal:
        assert pool(journal, A) == [1000]
        assert not any(b'"x":5}' in each for each in [journal.journal.path.read_bytes()])


def test_clear_of_a_part_while_disk_is_full(tmp_path: Path) -> None:
    """A clear of some keys removes what waits of them, and keeps what waits of others."""
    seen = refused(tmp_path, "part")
    # 0 and the even ones are A's, and so are those from 101 on; the odd ones are B's.
    assert numbers(tmp_path) == [*range(1, 101, 2), 1000]
    assert not any("could not be written" in message for message in seen["messages"])


def test_refused_clear_of_a_part_while_disk_is_full(tmp_path: Path) -> None:
    """A clear without room for the copy fails, and costs neither the file nor what waits."""
    seen = refused(tmp_path, "part-refused")
    assert str(tmp_path / "cache.jsonl") in seen["error"]
    assert seen["names"] == ["cache.jsonl", "cache.lock"]
    assert numbers(tmp_path) == [*range(0, 101, 2), *range(101, 201), 1000]


# A file that somebody cuts


def test_a_file_that_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a file that somebody cuts, only what came later is found, and the log says so."""
    for is_idle in (True, False):
        caplog.clear()
        folder = tmp_path / f"{is_idle}"
        with opened(folder) as journal:
            journal.append(line(A, b'{"x":1}', b'{"x":2}'))
            journal.settle()
            os.truncate(folder / "cache.jsonl", 0)
            if is_idle:
                until(lambda: caplog.records)
            journal.append(line(B, b'{"x":3}'))
            until(lambda journal=journal: journal.journal.resets)
            journal.settle()
            assert list(journal.journal.index) == [B], is_idle
            assert pool(journal, B) == [3], is_idle
        assert read(folder) == [line(B, b'{"x":3}')], is_idle
        (record,) = caplog.records
        assert "copytruncate" in record.getMessage()
        assert "2 samples" in record.getMessage()

"""The journal: what is written comes back, whatever happens to the process or the file."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.store.journal import MAX_PENDING, Journal, Loaded, examine
from sglang_cached_addon.store.lines import OtherVersion, parse, seal
from tests.conftest import until

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
Line = tuple[bytes, str, tuple[Sample, ...]]


class Opened:
    """A journal, and what was in it."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[Line] = []
        self.slots: list[int] = []
        self.journal = Journal(folder)
        try:
            self.loaded = self.journal.load()
        except BaseException:
            self.journal.close()
            raise
        for raw in self.journal.path.read_bytes().splitlines(keepends=True):
            with suppress(OtherVersion, ValueError, KeyError, TypeError):
                key, dialect, samples, _, slot = parse(raw)
                self.lines.append((key, dialect, tuple(samples)))
                self.slots.append(slot)

    def append(self, line: Line, content: bytes | None = None, *, slot: int | None = None) -> bool:
        """Behind what is there, if nothing else is said."""
        at = self.journal.index.end(line[0]) if slot is None else slot
        return self.journal.append(line[0], line[1], content, line[2], slot=at)

    def settle(self) -> None:
        """Waits until the file has it all."""
        until(lambda: self.journal.pending == 0)


@contextmanager
def opened(folder: Path) -> Iterator[Opened]:
    found = Opened(folder)
    try:
        yield found
    finally:
        found.journal.close()


def line(key: bytes, *answers: bytes, dialect: str = "chat") -> Line:
    samples = (Sample(answer, 1700000000.25, 0.5, 3 + n) for n, answer in enumerate(answers))
    return key, dialect, tuple(samples)


def write(folder: Path, *lines: Line) -> bytes:
    """The bytes of a journal with these lines."""
    with opened(folder) as journal:
        for one in lines:
            journal.append(one, b'{"q":"\xc3\xa9"}')
    return (folder / "cache.jsonl").read_bytes()


def read(folder: Path) -> list[Line]:
    with opened(folder) as journal:
        return journal.lines


def pool(journal: Opened, key: bytes) -> list[int]:
    """The samples of a key, by their numbers."""
    found = journal.journal.read(key, waits=True)
    return [json.loads(sample.answer)["x"] for sample in found or ()]


# Round trip


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b'{"text":"plain"}',
        '{"text":"é ü 漢字 😀 \u2028"}'.encode(),
        rb'{"text":"\n\r\t\"\\\u0000\u001f"}',
        b'{"b":1,"a":{"d":[],"c":null}}',
        b'{"logprob":-0.1234567890123456,"small":1e-300,"whole":1.0,"zero":-0.0}',
        b'{"int":18446744073709551615,"negative":-9223372036854775808}',
        b'{"deep":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"text":"' + b"x" * 10_000_000 + b'"}',
    ],
    ids=["empty", "plain", "unicode", "escapes", "order", "floats", "integers", "deep", "big"],
)
def test_round_trip(answer: bytes, tmp_path: Path) -> None:
    """A hit after a restart would differ from the answer that upstream gave."""
    wanted = [line(A, answer, b'{"other":1}', dialect="générate"), line(B, answer)]
    with opened(tmp_path) as journal:
        for one in wanted:
            journal.append(one, answer)
    assert read(tmp_path) == wanted
    assert (tmp_path / "cache.jsonl").read_bytes().count(b"\n") == 2


def test_order(tmp_path: Path) -> None:
    """A client would get other samples after a restart than before."""
    wanted = [line(key, b'{"x":%d}' % n) for n in range(200) for key in (A, B, C)]
    with opened(tmp_path) as journal:
        for one in wanted:
            journal.append(one)
    with opened(tmp_path) as journal:
        assert journal.lines == wanted
        assert journal.loaded == Loaded(keys=3, samples=600)


def test_lines_describe_themselves(tmp_path: Path) -> None:
    """People could not read or process the file with other tools."""
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":1}', b'{"x":2}'), b'{"text":"hi"}')
        journal.append(line(A, b'{"x":3}'))
    data = (tmp_path / "cache.jsonl").read_bytes().splitlines()
    first, second = map(json.loads, data)
    assert data[0].endswith(b',"sum":"%08x"}' % zlib.crc32(data[0][:-18]))
    assert first.pop("sum")
    assert first == {
        "v": 4,
        "key": A.hex(),
        "slot": 0,
        "dialect": "chat",
        "at": 1700000000.25,
        "seconds": 0.5,
        "tokens": [3, 4],
        "call": {"text": "hi"},
        "answers": [{"x": 1}, {"x": 2}],
    }
    assert "call" not in second
    assert second["slot"] == 2


def test_replaced_survives(tmp_path: Path) -> None:
    """After a restart a sample that was replaced would be back, or a pool have another order."""
    with opened(tmp_path) as journal:
        journal.append(line(A, *(b'{"x":%d}' % n for n in range(5))), b'{"q":1}')
        journal.append(line(A, b'{"x":10}'), slot=0)
        journal.append(line(A, b'{"x":13}', b'{"x":14}', b'{"x":15}'), slot=3)
        wanted = [10, 1, 2, 13, 14, 15]
        assert pool(journal, A) == wanted, "while it waits"
        journal.settle()
        assert pool(journal, A) == wanted
        journal.journal.compact().result(10)
        assert pool(journal, A) == wanted
    with opened(tmp_path) as journal:
        assert pool(journal, A) == wanted
        assert [call for _, _, call in journal.journal.calls(9, 9)] == [b'{"q":1}']
        journal.append(line(A), slot=0)
        assert pool(journal, A) == []
        journal.append(line(A, b'{"x":7}'))
    with opened(tmp_path) as journal:
        assert pool(journal, A) == [7]


def test_written_while_open(tmp_path: Path) -> None:
    """A proxy that is killed would lose all that it learned since its start."""
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":1}'))
        until(lambda: b'"answers":[{"x":1}],"sum":' in path.read_bytes())
        until(lambda: journal.journal.pending == 0)
        journal.append(line(A, b'{"x":2}'))
        until(lambda: b'"answers":[{"x":2}],"sum":' in path.read_bytes())


def test_close_writes_everything(tmp_path: Path) -> None:
    """An orderly stop would lose the last answers."""
    wanted = [line(A, b'{"x":%d}' % n) for n in range(1000)]
    journal = Opened(tmp_path)
    for one in wanted:
        journal.append(one)
    journal.journal.close()
    journal.journal.close()
    assert journal.journal.pending == 0
    assert read(tmp_path) == wanted


# Damage


def test_cut_anywhere(tmp_path: Path) -> None:
    """After a power cut the proxy would not start, lose whole lines, or write into a torn one."""
    lines = [line(A, '{"x":"é"}'.encode()), line(B, b'{"x":2}', b"{}")]
    data = write(tmp_path / "whole", *lines)
    added = line(C, b'{"x":"new"}')
    for end in range(len(data) + 1):
        folder = tmp_path / str(end)
        folder.mkdir()
        path = folder / "cache.jsonl"
        path.write_bytes(data[:end])
        start = data.rfind(b"\n", 0, end) + 1
        kept = lines[: data.count(b"\n", 0, end)]
        with opened(folder) as journal:
            assert journal.lines == kept, end
            assert (journal.loaded.skipped, journal.loaded.torn) == (0, end - start), end
            assert path.read_bytes() == data[:start], end
            journal.append(added)
        aside = folder / "cache.jsonl.torn"
        if end > start:
            assert aside.read_bytes() == data[start:end] + b"\n", end
        else:
            assert not aside.exists(), end
        with opened(folder) as journal:
            assert journal.lines == [*kept, added], end
            assert (journal.loaded.skipped, journal.loaded.torn) == (0, 0), end


def test_long_torn_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A torn line of a large answer would be cut at the wrong place."""
    wanted = line(A, b'{"x":1}')
    data = write(tmp_path, wanted)
    torn = b'{"v":4,"key":"' + b"x" * 300_000
    path = tmp_path / "cache.jsonl"
    path.write_bytes(data + torn)
    with opened(tmp_path) as journal:
        assert journal.lines == [wanted]
        assert journal.loaded.torn == len(torn)
    assert path.read_bytes() == data
    assert (tmp_path / "cache.jsonl.torn").read_bytes() == torn + b"\n"
    assert str(path) in caplog.text
    path.write_bytes(data + b"again")
    assert read(tmp_path) == [wanted]
    assert (tmp_path / "cache.jsonl.torn").read_bytes() == torn + b"\nagain\n"


GOOD: dict[str, Any] = {
    "v": FORMAT_VERSION,
    "key": C.hex(),
    "slot": 0,
    "dialect": "chat",
    "at": 1.5,
    "seconds": 0.5,
    "tokens": [1],
    "answers": [{"x": 1}],
}


def changed(**fields: Any) -> bytes:
    """A line with other fields; None leaves one out."""
    record = {k: v for k, v in {**GOOD, **fields}.items() if v is not None}
    # The first version had no sum.
    return orjson.dumps(record) if fields.get("v") == 1 else seal(orjson.dumps(record))[:-1]


BROKEN = {
    "blank": b"",
    "spaces": b"   ",
    "words": b"what is this",
    "cut": changed()[:-5],
    "two": changed() + changed(),
    "nul": b"\0" * 100,
    "not-utf8": changed().replace(b"chat", b"ch\xfft"),
    "carriage": b"\r",
    "json-null": b"null",
    "json-number": b"1",
    "json-text": b'"v"',
    "json-list": b"[1,2]",
    "json-empty": b"{}",
    "deep": b"[" * 5000 + b"]" * 5000,
    "no-sum": changed()[:-18] + b"}",
    "wrong-sum": changed()[:-10] + b'00000000"}',
    "other-case": changed()[:-10] + changed()[-10:].upper(),
    "space-behind": changed() + b" ",
    "old-with-wrong-sum": changed().replace(b'"v":4', b'"v":1'),
    "newer-with-wrong-sum": changed().replace(b'"v":4', b'"v":5'),
    "older": changed(v=0),
    "newer": changed(v=FORMAT_VERSION + 1),
    "version-text": changed(v=str(FORMAT_VERSION)),
    "version-list": changed(v=[1]),
    "no-version": changed(v=None),
    "no-key": changed(key=None),
    "key-number": changed(key=5),
    "key-short": changed(key="aa"),
    "key-long": changed(key=C.hex() * 2),
    "key-not-hex": changed(key="x" * 64),
    "no-dialect": changed(dialect=None),
    "no-time": changed(at=None),
    "time-list": changed(at=[]),
    "time-words": changed(at="now"),
    "no-seconds": changed(seconds=None),
    "no-tokens": changed(tokens=None),
    "tokens-number": changed(tokens=1),
    "tokens-list": changed(tokens=[[]]),
    "no-slot": changed(slot=None),
    "slot-text": changed(slot="0"),
    "slot-far": changed(slot=1 << 40),
    "time-nan": changed(at="nan"),
    "dialect-number": changed(dialect=7),
}
SEALED = {
    "answers-text": changed(answers=["x"]),
    "answers-null": changed(answers=[None]),
    "answers-a-text": changed(answers="x"),
    "more-tokens": changed(tokens=[1, 2]),
    "no-answers": changed(answers=None),
}
"""Which nobody would write, with a sum that is right: not looked at before they are asked for."""


@pytest.mark.parametrize("bad", BROKEN.values(), ids=BROKEN)
def test_broken_line(bad: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One bad line would keep the proxy from starting, lose the others, or go unnoticed."""
    wanted = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    first, second = write(tmp_path, *wanted).splitlines()
    path = tmp_path / "cache.jsonl"
    path.write_bytes(b"".join(one + b"\n" for one in (bad, first, bad, second, bad)))
    with opened(tmp_path) as journal:
        assert journal.lines == wanted
        assert journal.loaded == Loaded(keys=2, samples=2, skipped=3)
    for number in (1, 3, 5):
        assert f"{path}:{number}:" in caplog.text
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 3
    assert path.read_bytes().count(bad + b"\n") >= 3, "a broken line was not left for people to see"


@pytest.mark.parametrize("bad", SEALED.values(), ids=SEALED)
def test_broken_line_that_is_read(
    bad: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be an answer, or be read again and again."""
    good = write(tmp_path, line(A, b'{"x":1}'))
    path = tmp_path / "cache.jsonl"
    path.write_bytes(good + bad + b"\n")
    with opened(tmp_path) as journal:
        for _ in range(2):
            assert journal.journal.read(C, waits=True) == []
        assert list(journal.journal.index) == [A]
    (record,) = caplog.records
    assert f"{path}: the line at byte {len(good)} is not used" in record.getMessage()


def test_lines_without_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An update would answer for whatever model it was, flood the log, or destroy the lines."""
    wanted = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    first, second = write(tmp_path, *wanted).splitlines(keepends=True)
    old = changed(v=1) + b"\n"
    path = tmp_path / "cache.jsonl"
    path.write_bytes(old * 1000 + first + old + second + old)
    with opened(tmp_path) as journal:
        assert journal.loaded == Loaded(keys=2, samples=2, skipped=1002)
        until(lambda: path.stat().st_size == len(first + second))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert "1002" in record.getMessage()
    assert path.read_bytes() == first + second
    assert (tmp_path / "cache.jsonl.v1").read_bytes() == old * 1002
    former = changed(v=2) + b"\n"
    path.write_bytes(former + path.read_bytes())
    with opened(tmp_path):
        until(lambda: path.stat().st_size == len(first + second))
    assert read(tmp_path) == wanted
    assert (tmp_path / "cache.jsonl.v2").read_bytes() == former


@pytest.mark.parametrize("mask", [0x01, 0x04, 0x20, 0x80, 0xFF])
def test_flipped_anywhere(mask: int, tmp_path: Path) -> None:
    """A damaged line would be taken for another one, cost other entries, or the start."""
    wanted = [line(A, b'{"x":1}'), line(B, b'{"x":2}'), line(C, b'{"x":3}')]
    data = write(tmp_path, *wanted)
    path = tmp_path / "cache.jsonl"
    ends = [place for place, byte in enumerate(data) if byte == 10]
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= mask
        path.write_bytes(flipped)
        touched = sum(end < place for end in ends)
        # Without its newline, a line runs into the next one.
        lost = {touched, touched + 1} if place in ends else {touched}
        with opened(tmp_path) as journal:
            assert journal.lines == [o for n, o in enumerate(wanted) if n not in lost], place
            # The bit may make a line end of a letter, and the last line may be torn.
            count = 2 if flipped.count(10) > data.count(10) else 1
            found = journal.loaded.skipped + bool(journal.loaded.torn)
            assert found == count, place


# One process at a time

HOLDER = """
import signal, sys
from pathlib import Path
from sglang_cached_addon.store.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.load()
print("open", flush=True)
sys.stdin.read()
journal.close()
print("closed", flush=True)
signal.pause()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def test_second_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """Two proxies would write into one file, or nobody would know which to stop."""
    alias = tmp_path / "alias"
    alias.symlink_to(tmp_path)
    for folder in (tmp_path, alias):
        with pytest.raises(StoreError) as caught:
            Journal(folder)
        assert f"process {holder.pid};" in str(caught.value)
        assert str(folder) in str(caught.value)


def test_free_after_close(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """The folder would be taken for as long as a process lives that has done with it."""
    assert holder.stdin and holder.stdout
    holder.stdin.close()
    assert holder.stdout.readline() == "closed\n"
    assert holder.poll() is None
    assert read(tmp_path) == []


def test_free_after_kill(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """After a crash somebody would have to remove a lock by hand."""
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert read(tmp_path) == []


def test_second_opener_in_process(tmp_path: Path) -> None:
    """Two caches of one process would write into one file."""
    with opened(tmp_path) as journal:
        journal.append(line(A, b"{}"))
        with pytest.raises(StoreError, match=rf"process {os.getpid()};"):
            Journal(tmp_path)
        journal.append(line(B, b"{}"))
    assert read(tmp_path) == [line(A, b"{}"), line(B, b"{}")]


# Clear


def test_clear(tmp_path: Path) -> None:
    """What was cleared would be back after a restart, or what came after it be gone."""
    wanted = [line(A, b'{"x":2}'), line(B, b'{"x":3}')]
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":1}'))
        done = journal.journal.clear()
        journal.append(wanted[0])
        assert done.result(10) is None
        assert b'{"x":1}' not in (tmp_path / "cache.jsonl").read_bytes()
        journal.append(wanted[1])
    assert read(tmp_path) == wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache.jsonl", "cache.lock"]


def test_clear_of_what_is_on_disk(tmp_path: Path) -> None:
    """Entries of earlier runs would survive a clear."""
    write(tmp_path, line(A, b'{"x":1}'))
    (tmp_path / "cache.jsonl.new").write_bytes(b"left by a crash")
    with opened(tmp_path) as journal:
        assert journal.lines
        journal.journal.clear().result(10)
        assert (tmp_path / "cache.jsonl").read_bytes() == b""
        journal.journal.clear().result(10)
    assert read(tmp_path) == []


def test_clear_keeps_the_file(tmp_path: Path) -> None:
    """Who follows the file (a backup, `tail -f`) would follow one that is gone."""
    write(tmp_path, line(A, b'{"x":1}'))
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        before = path.stat().st_ino
        journal.journal.clear().result(10)
        assert (path.stat().st_ino, path.stat().st_size) == (before, 0)
        journal.append(line(B, b"{}"))
    assert read(tmp_path) == [line(B, b"{}")]


def test_clears_and_appends_in_turn(tmp_path: Path) -> None:
    """Clearing under load would lose or keep the wrong entries."""
    with opened(tmp_path) as journal:
        clears = []
        for n in range(50):
            journal.append(line(A, b'{"x":%d}' % n))
            clears.append(journal.journal.clear())
        journal.append(line(A, b'{"x":"last"}'))
        for done in clears:
            assert done.result(10) is None
    assert read(tmp_path) == [line(A, b'{"x":"last"}')]


def test_clear_before_close(tmp_path: Path) -> None:
    """A clear just before the stop would be forgotten, and its client wait for ever."""
    write(tmp_path, line(A, b'{"x":1}'))
    journal = Opened(tmp_path)
    done = journal.journal.clear()
    journal.journal.close()
    assert done.done()
    assert read(tmp_path) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_cancelled_clear(tmp_path: Path) -> None:
    """A client that leaves while it clears would silently end the storing of answers."""
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
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.store import journal as module

module.RETRY_SECONDS = 0.02
messages = []

class Note(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logging.getLogger().addHandler(Note())
folder, end = Path(sys.argv[1]), sys.argv[2]
path = folder / "cache.jsonl"
journal = module.Journal(folder)
journal.load()

def append(n, key=b"a" * 32):
    some = [Sample(b'{"x":%d}' % n, 1.5, 0.5, n)]
    journal.append(key, "chat", None, some, slot=journal.index.end(key))

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
least = []  # a refused run of lines is taken back
until(lambda: least.append(path.stat().st_size - size) or min(least) == 0)
seen = {"pending": journal.pending}
if end == "recover":
    limit(resource.RLIM_INFINITY)
    until(lambda: journal.pending == 0)
elif end == "clear":
    journal.clear().result(3)
    seen["cleared"] = path.stat().st_size
    append(1000)
elif end == "compact":
    journal.compact().result(3)
    seen["compacted"] = path.stat().st_size
    limit(resource.RLIM_INFINITY)
    until(lambda: journal.pending == 0)
elif end == "part":
    done = journal.clear(lambda key: key == b"a" * 32)
    append(1000)
    limit(resource.RLIM_INFINITY)
    done.result(3)
    until(lambda: journal.pending == 0)
elif end == "part-refused":
    limit(size - 1)
    try:
        journal.clear(lambda key: key == b"b" * 32).result(3)
    except module.StoreError as e:
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
    """A full disk would stop the proxy, tear the file, flood the log, or cost what came then."""
    seen = refused(tmp_path, "recover")
    assert (seen["pending"], seen["lost"]) == (200, 0)
    assert len(seen["messages"]) == 1
    assert str(tmp_path / "cache.jsonl") in seen["messages"][0]
    answers = [s.answer for _, _, samples in read(tmp_path) for s in samples]
    assert answers == [b'{"x":%d}' % n for n in range(201)]


def test_closed_while_disk_is_full(tmp_path: Path) -> None:
    """A proxy with a full disk could not be stopped, or would spoil what it had."""
    seen = refused(tmp_path, "close")
    assert seen["lost"] == 200
    assert any("200 samples could not be written" in message for message in seen["messages"])
    with opened(tmp_path) as journal:
        answers = [s.answer for _, _, samples in journal.lines for s in samples]
        assert journal.loaded.skipped == journal.loaded.torn == 0
    assert answers == [b'{"x":0}']


def test_clear_while_disk_is_full(tmp_path: Path) -> None:
    """Clearing the cache would hang just when people need the room."""
    seen = refused(tmp_path, "clear")
    assert seen["cleared"] == 0
    assert read(tmp_path)[0][2][0].answer == b'{"x":1000}'


def test_compact_while_disk_is_full(tmp_path: Path) -> None:
    """Making room would wait for room, or cost what waits."""
    write(tmp_path, line(A, b'{"x":-2}'))
    (tmp_path / "cache.jsonl").write_bytes(b"broken\n" + (tmp_path / "cache.jsonl").read_bytes())
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":-1}'), slot=0)
    before = (tmp_path / "cache.jsonl").stat().st_size
    seen = refused(tmp_path, "compact")
    assert 0 < seen["compacted"] < before
    assert numbers(tmp_path) == [-1, *range(201)]


def numbers(folder: Path) -> list[int]:
    return [json.loads(s.answer)["x"] for _, _, samples in read(folder) for s in samples]


def test_clear_of_a_part_while_disk_is_full(tmp_path: Path) -> None:
    """Clearing one model would cost what others have learned while the disk was full, or let
    what was cleared come to the file after all."""
    seen = refused(tmp_path, "part")
    # 0 and the even ones are A's, and so are those from 101 on; the odd ones are B's.
    assert numbers(tmp_path) == [*range(1, 101, 2), 1000]
    assert not any("could not be written" in message for message in seen["messages"])


def test_refused_clear_of_a_part_while_disk_is_full(tmp_path: Path) -> None:
    """A clear for which there is no room would cost the file, or what waits for room."""
    seen = refused(tmp_path, "part-refused")
    assert str(tmp_path / "cache.jsonl") in seen["error"]
    assert seen["names"] == ["cache.jsonl", "cache.lock"]
    assert numbers(tmp_path) == [*range(0, 101, 2), *range(101, 201), 1000]


# Clear of a part


def of_a(key: bytes) -> bool:
    return key == A


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Held:
    """Keeps the writer from its work, so that much is queued when it goes on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._go = threading.Event()
        entered = threading.Event()
        real = os.fstat

        def wait(handle: int) -> os.stat_result:
            if threading.current_thread().name == "journal":
                entered.set()
                assert self._go.wait(10)
            return real(handle)

        patch.setattr("sglang_cached_addon.store.journal.LOOK_SECONDS", 0.01)
        patch.setattr(os, "fstat", wait)
        # It looks whether the file is still there.
        assert entered.wait(10)

    def release(self) -> None:
        self._go.set()


def test_clear_of_a_part(tmp_path: Path) -> None:
    """Other models' answers would go, change or lose their order, or new ones go to a file that is
    no more."""
    lines = [line(key, b'{"x":%d}' % n) for n in range(20) for key in (A, B, C)]
    before = write(tmp_path, *lines).splitlines(keepends=True)
    path = tmp_path / "cache.jsonl"
    path.chmod(0o600)
    with opened(tmp_path) as journal:
        journal.journal.clear(of_a).result(10)
        kept = [one for one in before if A.hex().encode() not in one]
        assert path.read_bytes().splitlines(keepends=True) == kept
        journal.append(line(A, b'{"x":"after"}'))
        journal.settle()
        assert len(path.read_bytes().splitlines()) == len(kept) + 1
    wanted = [*(one for one in lines if one[0] != A), line(A, b'{"x":"after"}')]
    assert read(tmp_path) == wanted
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_clear_of_a_part_destroys_nothing_that_it_cannot_read(tmp_path: Path) -> None:
    """What somebody might mend, or another release read, would be destroyed."""
    good = write(tmp_path, line(A, b'{"x":1}'), line(B, b'{"x":2}')).splitlines()
    newer = changed(v=FORMAT_VERSION + 1, key=A.hex())
    unknown = list(BROKEN.values())
    unknown = [bad for bad in unknown if bad != changed(v=FORMAT_VERSION + 1)]
    path = tmp_path / "cache.jsonl"
    path.write_bytes(b"".join(one + b"\n" for one in (*unknown, *good, newer, *unknown)))
    with opened(tmp_path) as journal:
        journal.journal.clear(lambda key: True).result(10)
    assert path.read_bytes() == newer + b"\n"
    aside = (tmp_path / "cache.jsonl.broken").read_bytes()
    assert aside == b"".join(one + b"\n" for one in (*unknown, *unknown))


def test_clear_of_a_part_of_nothing(tmp_path: Path) -> None:
    """A clear of an empty cache would never come to its end."""
    with opened(tmp_path) as journal:
        journal.journal.clear(of_a).result(10)
        journal.append(line(A, b"{}"))
    assert read(tmp_path) == [line(A, b"{}")]


def test_replaced_survives_a_clear_of_others(tmp_path: Path) -> None:
    """Samples that were replaced would be back."""
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":1}'))
        journal.append(line(B, b'{"x":1}', b'{"x":3}'), b'{"q":1}')
        journal.append(line(B, b'{"x":2}'), slot=0)
        journal.journal.clear(of_a).result(10)
    with opened(tmp_path) as journal:
        assert pool(journal, B) == [2, 3]
        assert [call for _, _, call in journal.journal.calls(9, 9)] == [b'{"q":1}']


def test_pending_lines_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear under load would lose answers of others, or let its own come after it."""
    write(tmp_path, line(A, b'{"x":"file"}'), line(B, b'{"x":"file"}'))
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        for key in (A, B, C):
            journal.append(line(key, b'{"x":"before"}'))
        first = journal.journal.clear(of_a)
        for key in (A, B, C):
            journal.append(line(key, b'{"x":"between"}'))
        second = journal.journal.clear(lambda key: key == B)
        for key in (A, B, C):
            journal.append(line(key, b'{"x":"after"}'))
        held.release()
        assert first.result(10) is second.result(10) is None
    assert read(tmp_path) == [
        line(C, b'{"x":"before"}'),
        line(A, b'{"x":"between"}'),
        line(C, b'{"x":"between"}'),
        *(line(key, b'{"x":"after"}') for key in (A, B, C)),
    ]


@pytest.mark.parametrize("part_first", [True, False])
def test_clear_of_all_beside_one_of_a_part(
    part_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller one would bring back what the other took."""
    write(tmp_path, line(A, b'{"x":"file"}'), line(B, b'{"x":"file"}'))
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        clears = []
        for is_part in (part_first, not part_first):
            journal.append(line(B, b'{"x":%d}' % is_part))
            clears.append(journal.journal.clear(of_a if is_part else None))
        journal.append(line(A, b'{"x":"after"}'))
        held.release()
        for done in clears:
            assert done.result(10) is None
    between = [] if part_first else [line(B, b'{"x":1}')]
    assert read(tmp_path) == [*between, line(A, b'{"x":"after"}')]


def test_clears_of_parts_under_load(tmp_path: Path) -> None:
    """Somewhere between rewriting and adding, a line would be lost or come twice."""
    wanted: list[int] = []
    with opened(tmp_path) as journal:
        clears = []
        for n in range(300):
            journal.append(line(A, b'{"x":%d}' % n))
            journal.append(line(B, b'{"x":%d}' % (n + 1000)))
            wanted.append(n + 1000)
            if n % 30 == 29:
                clears.append(journal.journal.clear(of_a))
            time.sleep(0.001 * (n % 3))
        for done in clears:
            assert done.result(10) is None
    assert numbers(tmp_path) == wanted


def fail(*args: object, **more: object) -> None:
    raise OSError(28, "No space left on device")


def break_rename(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "replace", fail)


def break_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fsync", fail)


@pytest.mark.parametrize("break_it", [break_rename, break_sync])
def test_failed_clear_of_a_part(
    break_it: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clear that cannot be done would cost the journal, or say that it was done."""
    lines = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    before = write(tmp_path, *lines)
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        with monkeypatch.context() as patch:
            break_it(patch)
            with pytest.raises(StoreError) as caught:
                journal.journal.clear(of_a).result(10)
        assert str(caught.value) == f"cannot clear {path}: No space left on device"
        assert path.read_bytes() == before
        assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
        journal.append(line(C, b'{"x":3}'))
        journal.settle()
        assert path.read_bytes().startswith(before)
        journal.journal.clear(of_a).result(10)
    assert read(tmp_path) == [line(B, b'{"x":2}'), line(C, b'{"x":3}')]


def test_folder_that_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that comes after the renaming would be written to a file that is gone."""
    write(tmp_path, line(A, b'{"x":1}'), line(B, b'{"x":2}'))
    with opened(tmp_path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr("sglang_cached_addon.store.rewriting.sync_folder", fail)
            with pytest.raises(StoreError, match="No space left"):
                journal.journal.clear(of_a).result(10)
        journal.append(line(C, b'{"x":3}'))
    assert read(tmp_path) == [line(B, b'{"x":2}'), line(C, b'{"x":3}')]


def test_killed_in_the_middle_of_a_clear(tmp_path: Path) -> None:
    """Half of a journal would be taken for the whole, or its rest for what is to be added to."""
    lines = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    before = write(tmp_path, *lines)
    aside = tmp_path / "cache.jsonl.new"
    aside.write_bytes(before[: len(before) // 2])
    with opened(tmp_path) as journal:
        assert journal.lines == lines
        assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
        aside.write_bytes(b"x" * 9999)
        journal.journal.clear(of_a).result(10)
    assert read(tmp_path) == [line(B, b'{"x":2}')]
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]


KILLED = """
import os, sys
from pathlib import Path
from sglang_cached_addon.store.journal import Journal

journal = Journal(Path(sys.argv[1]))
journal.load()
renaming = os.replace
def replace(*names):
    if sys.argv[2] == "after":
        renaming(*names)
    os._exit(7)
os.replace = replace
journal.clear(lambda key: key == b"a" * 32).result(10)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_the_renaming(when: str, tmp_path: Path) -> None:
    """There would be neither the old journal nor the new one."""
    lines = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    write(tmp_path, *lines)
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when], check=False)
    assert child.returncode == 7
    assert read(tmp_path) == (lines if when == "before" else lines[1:])
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]


# The calls


def calls(folder: Path, limit: int = 100, seconds: float = 10.0) -> list[tuple[bytes, str, bytes]]:
    with opened(folder) as journal:
        return list(journal.journal.calls(limit, seconds))


def test_calls(tmp_path: Path) -> None:
    """Who asks what was stored would get something else, or a traceback of a broken line."""
    with opened(tmp_path) as journal:
        journal.append(line(A, b"{}"), '{"q":"é","z":1,"a":2.0}'.encode())
        journal.append(line(A, b'{"call":1}'))
        journal.append(line(B, b"{}", dialect="generate"), b'{"q":2}')
    found = [(A, "chat", '{"q":"é","z":1,"a":2.0}'.encode()), (B, "generate", b'{"q":2}')]
    assert calls(tmp_path) == found
    path = tmp_path / "cache.jsonl"
    odd = [changed(call=value) for value in ("x", 1, [])] + [changed(v=1, call={"q": 0})]
    deep = b'{"v":4,"key":"%s","dialect":"x","call":%s}' % (
        C.hex().encode(),
        b'{"a":' * 500 + b"1" + b"}" * 500,
    )
    bad = b"".join(one + b"\n" for one in (*BROKEN.values(), *odd, deep))
    path.write_bytes(bad + path.read_bytes() + bad)
    assert calls(tmp_path) == found


@pytest.mark.parametrize(
    ("limit", "seconds", "count"), [(0, 9, 0), (1, 9, 1), (2, 9, 2), (9, 9, 3), (9, -1, 0)]
)
def test_calls_end(limit: int, seconds: float, count: int, tmp_path: Path) -> None:
    """A large journal would hold up the answer that only was to explain a miss."""
    write(tmp_path, *(line(key, b"{}") for key in (A, B, C)))
    assert len(calls(tmp_path, limit, seconds)) == count


def test_calls_do_not_disturb(tmp_path: Path) -> None:
    """Reading would hold up the writer, or end badly when the file is replaced under it."""
    write(tmp_path, *(line(key, b"{}") for key in (A, B, C) * 2000))
    with opened(tmp_path) as journal:
        reading = journal.journal.calls(10_000, 10)
        assert next(reading)[0] == A
        journal.append(line(A, b'{"x":1}'))
        journal.journal.clear(of_a).result(10)
        assert len(list(reading)) == 5999
        cut = journal.journal.calls(10_000, 10)
        assert next(cut)[0] == B
        journal.journal.clear().result(10)
        list(cut)
        assert list(journal.journal.calls(9, 9)) == []
        (tmp_path / "cache.jsonl").unlink()
        assert list(journal.journal.calls(9, 9)) == []


# Syncing


@pytest.mark.parametrize(
    ("fsync", "open_syncs"), [("always", True), ("interval", True), ("never", False)]
)
def test_fsync(
    fsync: str, open_syncs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would cost more than was said, or each answer a wait for the disk."""
    sizes: list[int] = []
    real = os.fsync

    def note(handle: int) -> None:
        sizes.append(os.fstat(handle).st_size)
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr("sglang_cached_addon.store.syncer.SYNC_SECONDS", 0.1)
    journal = Journal(tmp_path, fsync=fsync)
    journal.load()
    path = tmp_path / "cache.jsonl"
    for n in range(3):
        before = path.stat().st_size
        journal.append(A, "chat", None, line(A, b'{"x":%d}' % n)[2], slot=n)
        until(lambda: journal.pending == 0)
        size = path.stat().st_size
        assert size > before
        if open_syncs:  # though no more lines come
            until(lambda size=size: size in sizes)
    assert bool(sizes) is open_syncs
    journal.close()
    assert sizes[-1] == path.stat().st_size


def test_unknown_fsync(tmp_path: Path) -> None:
    """A slip of the pen would cost answers at the next power cut."""
    with pytest.raises(ValueError, match="sometimes"):
        Journal(tmp_path, fsync="sometimes")
    assert names(tmp_path) == []


@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_sync_that_fails(
    fsync: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing disk would end the storing, or flood the log."""
    attempts: list[int] = []

    def fail_again(handle: int) -> None:
        attempts.append(handle)
        fail()

    with monkeypatch.context() as patch:
        patch.setattr("sglang_cached_addon.store.syncer.SYNC_SECONDS", 0.05)
        patch.setattr(os, "fsync", fail_again)
        journal = Journal(tmp_path, fsync=fsync)
        journal.load()
        for n in range(3):
            journal.append(A, "chat", None, line(A, b'{"x":%d}' % n)[2], slot=n)
            until(lambda: journal.pending == 0)
        until(lambda: len(attempts) > 2)
        assert len(caplog.records) == 1
    journal.close()
    assert numbers(tmp_path) == [0, 1, 2]


def test_sync_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk would hold up the lines of each second, and a crash would cost them."""
    begun, ended = threading.Event(), threading.Event()

    def take_long(handle: int) -> None:
        begun.set()
        ended.wait(20)

    with monkeypatch.context() as patch:
        patch.setattr("sglang_cached_addon.store.syncer.SYNC_SECONDS", 0.0)
        patch.setattr(os, "fsync", take_long)
        journal = Journal(tmp_path)
        journal.load()
        journal.append(A, "chat", None, line(A, b'{"x":0}')[2])
        assert begun.wait(20)
        journal.append(A, "chat", None, line(A, b'{"x":1}')[2], slot=1)
        until(lambda: journal.pending == 0)
        assert not ended.is_set()
        assert examine(tmp_path / "cache.jsonl", lambda number, why: None).samples == 2
        ended.set()
        journal.close()


# Too much for the disk


def test_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not keep up would fill the memory, or the log, or mix up the order."""
    write(tmp_path, line(A, b"{}"))
    big = b'{"x":%d,"y":"' + b"y" * (MAX_PENDING // 8) + b'"}'
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        for n in range(10):
            journal.append(line(B, big % n))
            assert journal.journal.pending_bytes <= MAX_PENDING
        assert journal.journal.dropped == 3
        assert len(caplog.records) == 1
        held.release()
        journal.settle()
        assert journal.journal.pending_bytes == 0
        journal.append(line(B, b'{"x":10}'))
        journal.settle()
        assert len(caplog.records) == 2
        assert journal.journal.dropped == 3
    found = [json.loads(s.answer)["x"] for _, _, samples in read(tmp_path)[1:] for s in samples]
    assert found == [*range(7), 10]


# Compacting


def at(one: Line, when: float) -> Line:
    return one[0], one[1], tuple(replace(sample, stored_at=when) for sample in one[2])


def test_compact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file would grow for ever, or compacting it cost answers or what was asked."""
    newer = changed(v=FORMAT_VERSION + 1)
    path = tmp_path / "cache.jsonl"
    lines = [
        at(line(A, b'{"x":1}', b'{"x":2}'), 1.0),
        at(line(B, b'{"x":3}'), 1.0),
        at(line(A, b'{"x":4}'), 2.0),
        at(line(A, b'{"x":5}'), 3.0),
    ]
    with opened(tmp_path) as journal:
        journal.append(lines[0], b'{"q":1}')
        journal.append(lines[1], b'{"q":2}')
        journal.append(lines[2], slot=0)
        journal.append(lines[3], slot=1)
        journal.settle()
    path.write_bytes(newer + b"\nbroken\n" + path.read_bytes())
    path.chmod(0o600)
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        done = journal.journal.compact()
        journal.append(line(C, b'{"x":6}'))
        held.release()
        assert done.result(10) is None
        journal.append(line(C, b'{"x":7}'))
    data = path.read_bytes()
    assert data.startswith(newer + b"\n")
    aside = tmp_path / "cache.jsonl.broken"
    assert aside.read_bytes() == b"broken\n"
    assert path.stat().st_mode & 0o777 == aside.stat().st_mode & 0o777 == 0o600
    with opened(tmp_path) as journal:
        assert journal.lines == [*lines[1:], line(C, b'{"x":6}'), line(C, b'{"x":7}')]
        found = [(key, call) for key, _, call in journal.journal.calls(9, 9)]
        assert found == [(B, b'{"q":2}'), (A, b'{"q":1}')]
        before = path.read_bytes()
        journal.journal.compact().result(10)
        assert path.read_bytes() == before, "what is compact was changed"


@pytest.mark.parametrize("break_it", [break_rename, break_sync])
def test_failed_compacting(
    break_it: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk would cost the journal just when it is to become smaller."""
    before = write(tmp_path, line(A, b'{"x":1}'))
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        with monkeypatch.context() as patch:
            break_it(patch)
            with pytest.raises(StoreError, match="cannot compact"):
                journal.journal.compact().result(10)
        assert path.read_bytes() == before
        assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
        journal.append(line(A, b'{"x":2}'))
    assert numbers(tmp_path) == [1, 2]


def test_clear_of_others_beside_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored just before a clear of others would be on the disk, and not be found."""
    write(tmp_path, line(A, b'{"x":1}'), line(B, b'{"x":2}'))
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        done = [journal.journal.clear(lambda key: key == A)]
        journal.append(line(C, b'{"x":3}'))
        journal.append(line(B, b'{"x":4}'))
        done.append(journal.journal.clear(lambda key: key == C))
        held.release()
        for one in done:
            one.result(10)
        until(lambda: journal.journal.read(B, waits=True))
        assert list(journal.journal.index) == [B]
        found = journal.journal.read(B, waits=True)
        assert [sample.answer for sample in found or ()] == [b'{"x":2}', b'{"x":4}']


def test_clear_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a clear, what is gone would still count as waiting."""
    write(tmp_path, line(A, b"{}"))
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        journal.append(line(A, b'{"x":1}'))
        assert journal.journal.pending_bytes > 0
        done = journal.journal.clear()
        assert journal.journal.pending_bytes == 0
        held.release()
        done.result(10)


# What others do to the file


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked often whether the file is where it was."""
    monkeypatch.setattr("sglang_cached_addon.store.journal.LOOK_SECONDS", 0.01)


def rotate(path: Path) -> None:
    path.rename(path.with_name("cache.jsonl.1"))


def rotate_and_create(path: Path) -> None:
    rotate(path)
    path.touch(0o644)


def rotate_and_remove(path: Path) -> None:
    rotate(path)
    path.with_name("cache.jsonl.1").unlink()


def take_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("is_idle", [True, False])
@pytest.mark.parametrize(
    "do", [rotate, rotate_and_create, rotate_and_remove, Path.unlink, take_folder]
)
def test_a_file_that_is_taken_away(
    do: Callable[[Path], Any], is_idle: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """logrotate, or somebody who cleans up, would cost all that is stored, or comes after it."""
    folder = tmp_path / "cache"
    path = folder / "cache.jsonl"
    wanted = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    with opened(folder) as journal:
        journal.append(wanted[0])
        journal.settle()
        do(path)
        if not is_idle:
            journal.append(wanted[1])
        until(lambda: path.exists() and path.stat().st_size)
        until(lambda: caplog.records)
        journal.append(line(C, b'{"x":3}'))
        journal.settle()
        assert pool(journal, A) == [1]
    wanted = [wanted[0], *([] if is_idle else [wanted[1]]), line(C, b'{"x":3}')]
    assert read(folder) == wanted
    assert path.stat().st_mode & 0o777 == 0o600
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    said = "was renamed" if do in (rotate, rotate_and_create) else "was removed"
    assert said in record.getMessage() or do is take_folder


@pytest.mark.usefixtures("looking")
def test_another_file_in_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody's backup would be destroyed, or what is stored from then on."""
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":1}'))
        journal.settle()
        backup = tmp_path / "backup"
        backup.write_bytes(b"backup\n")
        backup.rename(path)
        until(lambda: path.exists() and path.read_bytes() != b"backup\n")
        journal.append(line(B, b'{"x":2}'))
    assert read(tmp_path) == [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    assert (tmp_path / "cache.jsonl.other").read_bytes() == b"backup\n"
    assert "cache.jsonl.other" in caplog.text


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("is_idle", [True, False])
def test_a_file_that_is_cut(
    is_idle: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """logrotate's `copytruncate` would have us read what is not there, or say nothing."""
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":1}', b'{"x":2}'))
        journal.settle()
        os.truncate(path, 0)
        if is_idle:
            until(lambda: caplog.records)
        journal.append(line(B, b'{"x":3}'))
        until(lambda: journal.journal.turn)
        journal.settle()
        assert list(journal.journal.index) == [B]
        assert pool(journal, B) == [3]
    assert read(tmp_path) == [line(B, b'{"x":3}')]
    (record,) = caplog.records
    assert "copytruncate" in record.getMessage()
    assert "2 samples" in record.getMessage()


# A file of the original

ORIGINAL = [
    b'{"key": "abc", "request": {"text": "hi"}, "responses": [{"text": "ho"}]}',
    b'{"hash": "0f", "n": 2, "response": {"choices": []}}',
]


@pytest.mark.parametrize("torn", [b"", b"\n", b'\n{"key": "half'], ids=["cut", "whole", "torn"])
def test_a_file_of_the_original(
    torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who comes from the original would get a warning a line, or lose what it had."""
    path, aside = tmp_path / "cache.jsonl", tmp_path / "cache.jsonl.original"
    for count in (1, 2):
        data = b"\n".join(ORIGINAL * 500) + torn
        path.write_bytes(data)
        caplog.clear()
        with opened(tmp_path) as journal:
            assert journal.loaded == Loaded()
            journal.append(line(A, b'{"x":1}'))
        (record,) = [r for r in caplog.records if "could read" not in r.getMessage()]
        assert "cache.jsonl.original" in record.getMessage()
        assert aside.read_bytes() == data
        assert read(tmp_path) == [line(A, b'{"x":1}')]
        found = list(tmp_path.glob("cache.jsonl.original*"))
        assert len(found) == count, "what was moved before is gone"


def test_lines_of_another_program_among_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Our own answers would be moved away with them, or the log be flooded."""
    own = write(tmp_path, line(A, b'{"x":1}'))
    path = tmp_path / "cache.jsonl"
    path.write_bytes(b"".join(one + b"\n" for one in ORIGINAL * 500) + own)
    with opened(tmp_path) as journal:
        assert journal.loaded == Loaded(1, 1, skipped=1000)
        assert pool(journal, A) == [1]
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
    assert len(caplog.records) < 30
    assert "1000 lines skipped in all" in caplog.text


# How much there is room for


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stores much would not wait for a disk that takes it, or wait for ever for one that does
    not."""
    monkeypatch.setattr("sglang_cached_addon.store.journal.ROOM", 1000)
    big = line(A, b'{"x":"' + b"x" * 1000 + b'"}')
    with opened(tmp_path) as journal:
        assert journal.journal.room() is None
        held = Held(monkeypatch)
        journal.append(big)
        room = journal.journal.room()
        assert room and not room.done()
        held.release()
        assert room.result(10) is None
        assert journal.journal.room() is None
        last = journal.journal
    assert last.room() is None

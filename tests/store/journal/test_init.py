"""The journal: what is written comes back."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from sglang_cached_addon.store import Loaded
from sglang_cached_addon.store.journal.reader import calls_of
from tests.conftest import until
from tests.store.journal.opened import (
    A,
    B,
    C,
    Opened,
    line,
    opened,
    pool,
    read,
)

ANSWERS = [
    b"{}", b'{"text":"plain"}', '{"text":"é ü 漢字 😀 \u2028"}'.encode(),
    rb'{"text":"\n\r\t\"\\\u0000\u001f"}', b'{"b":1,"a":{"d":[],"c":null}}',
    b'{"logprob":-0.1234567890123456,"small":1e-300,"whole":1.0,"zero":-0.0}',
    b'{"int":18446744073709551615,"negative":-9223372036854775808}',
    b'{"deep":' + b"[" * 200 + b"]" * 200 + b"}", b'{"text":"' + b"x" * 10_000_000 + b'"}',
]  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    """Each answer is read back byte for byte, and each line is one line of the file."""
    wanted = []
    with opened(tmp_path) as journal:
        for answer in ANSWERS:
            lines = [line(A, answer, b'{"other":1}', dialect="générate"), line(B, answer)]
            for one in lines:
                journal.append(one, answer)
            wanted += lines
    assert read(tmp_path) == wanted
    assert (tmp_path / "cache.jsonl").read_bytes().count(b"\n") == len(wanted)


def test_order(tmp_path: Path) -> None:
    """The order of the lines, and so of a pool, is the same after a restart."""
    wanted = [line(key, b'{"x":%d}' % n) for n in range(200) for key in (A, B, C)]
    with opened(tmp_path) as journal:
        for one in wanted:
            journal.append(one)
    with opened(tmp_path) as journal:
        assert journal.lines == wanted
        assert journal.loaded == Loaded(keys=3, samples=600)


def test_lines_describe_themselves(tmp_path: Path) -> None:
    """Each line is a JSON object that other tools can read, with its sum at the end."""
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
    """A sample that took the slot of another one has it after a restart, too."""
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
        assert [call for _, _, call in calls_of(journal.journal.path, 9, 9)] == [b'{"q":1}']
        journal.append(line(A), slot=0)
        assert pool(journal, A) == []
        journal.append(line(A, b'{"x":7}'))
    with opened(tmp_path) as journal:
        assert pool(journal, A) == [7]


def test_written_while_open(tmp_path: Path) -> None:
    """A line is in the file soon after it was added, though the journal is open."""
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":1}'))
        until(lambda: b'"answers":[{"x":1}],"sum":' in path.read_bytes())
        until(lambda: journal.journal.pending == 0)
        journal.append(line(A, b'{"x":2}'))
        until(lambda: b'"answers":[{"x":2}],"sum":' in path.read_bytes())


def test_close_writes_everything(tmp_path: Path) -> None:
    """All that was added is in the file after an orderly end."""
    wanted = [line(A, b'{"x":%d}' % n) for n in range(1000)]
    journal = Opened(tmp_path)
    for one in wanted:
        journal.append(one)
    journal.journal.close()
    journal.journal.close()
    assert journal.journal.pending == 0
    assert read(tmp_path) == wanted

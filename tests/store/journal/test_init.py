"""The journal: what is written comes back."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from tests.store.journal.opened import A, B, line, opened, read

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

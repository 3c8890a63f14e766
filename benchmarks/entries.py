"""Writes a journal of many entries ahead, so that start-up and lookups can be measured.

Lines are as the docstring of `sglang_cached_addon.store.journal` documents them, keys are
from the package's own functions. The canonical call of entry i differs from that of entry
0 in its number only, so it is made once.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from benchmarks import stub
from benchmarks.calls import MARK, Call, numbered
from sglang_cached_addon import dialects, keys

FINGERPRINT = ""
"""Of the model behind the proxy: part of every key."""

_BATCH = 10_000


def write_journal(folder: Path, call: Call, entries: int) -> None:
    """Makes `cache.jsonl` in the folder, with numbers 0 to `entries` - 1 of a call."""
    dialect = dialects.installed()["POST", call.path]
    content = dialect.read(keys.parse(call.template.encode())).items[0].decode()
    line = orjson.dumps(
        {
            "v": keys.FORMAT_VERSION,
            "key": "<key>",
            "dialect": dialect.name,
            "at": 1795408031.0,
            "seconds": 0.018,
            "tokens": [len(stub.TOKENS)],
            "call": orjson.loads(content),
            "answers": [stub.generated(1)],
        }
    ).decode()
    assert line.count(MARK) == content.count(MARK) == 1
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cache.jsonl", "wb") as journal:
        for start in range(0, entries, _BATCH):
            lines = bytearray()
            for number in range(start, min(start + _BATCH, entries)):
                key = keys.digest(FINGERPRINT, dialect.name, numbered(content, number))
                lines += numbered(line.replace("<key>", key.hex(), 1), number) + b"\n"
            journal.write(lines)

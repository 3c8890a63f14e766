"""Writes a journal of many entries ahead, so that start-up and lookups can be measured.

Lines and keys are made by the package's own functions. The canonical call of entry i
differs from that of entry 0 in its number only, so it is made once.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from benchmarks import stub
from benchmarks.calls import Call, numbered
from sglang_cached_addon import dialects
from sglang_cached_addon.core import keys
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import identify
from sglang_cached_addon.store.journal.lines import encode

_STUB = identify(stub.INFO["/model_info"], None, None)
FINGERPRINT = Epochs().fingerprint(_STUB) if _STUB else ""
"""Of the model behind the proxy: part of every key."""

_BATCH = 10_000


def write_journal(folder: Path, call: Call, entries: int, *, times: int = 1) -> None:
    """Makes `cache.jsonl` in the folder, with numbers 0 to `entries` - 1 of a call. What is
    written several `times` replaces what came before."""
    dialect = dialects.installed()["POST", call.path]
    digester = keys.Digester(FINGERPRINT, dialect.name)
    content = dialect.read(keys.parse(call.template.encode())).items[0].decode()
    answer = orjson.dumps(stub.generated(1))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cache.jsonl", "wb") as file:
        for turn in range(times):
            at = 1795408031.0 + turn
            sample = Sample(answer, at, 0.018, len(stub.TOKENS))
            for start in range(0, entries, _BATCH):
                lines = bytearray()
                for number in range(start, min(start + _BATCH, entries)):
                    asked = numbered(content, number)
                    key, raw = digester.key(asked), digester.raw(numbered(call.template, number))
                    first = b"" if turn else asked
                    lines += encode(Addition(key, dialect.name, first, [sample], raw))
                file.write(lines)

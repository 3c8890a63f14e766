"""The lines of a journal, one self-describing JSON object each.

    {"v":4,"key":"<64 hex>","raw":"<32 hex>","slot":<n>,"dialect":"...","at":<unix s>,
     "seconds":<s>,"tokens":[..],"deltas":[..],"origins":[..],"call":{..},"answers":[{..},..],
     "sum":"<8 hex>"}

`answers` are samples, each the whole answer of its API for n=1. They take the slots of the key's
pool from `slot` on, and replace what earlier lines have there, so that the file alone, and no
clock, says the order of a pool. A line without answers removes the pool. `deltas`, where samples
came as streams, holds the boundaries of each one's events, or null; `origins`, where a rule leaves
something out of the key, the 32 hexadecimal digits that name what that was for each; `call` is what
was asked, on the first line of a key; `raw` names a body that the first answer of the key answers;
`at` says when the samples were stored; `sum` is the CRC-32 of the line's bytes before `,"sum":`, so
that a damaged line is never taken for another one. Pure.
"""

from __future__ import annotations

import re
import zlib
from binascii import unhexlify
from typing import Any

import orjson

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.keys import FORMAT_VERSION, dumps
from sglang_cached_addon.store.journal.extents import MAX_SLOT, Head

OLD_VERSIONS = (1, 2, 3)
"""Former format versions, whose lines are kept but of no use: the first did not name the model, the
second took the order of a pool from clocks, and the keys of the third depended on how a library
wrote floats."""

BROKEN = (ValueError, KeyError, TypeError)
"""What is raised for a broken line."""


class OtherVersion(Exception):
    """Raised for a whole line of a former or a later format version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"format version {version}")
        self.version = version


def encode(line: Addition, slot: int = 0) -> bytes:
    """A line with samples, and its newline; without any, one that removes them all."""
    samples = line.samples
    record: dict[str, Any] = {
        "v": FORMAT_VERSION,
        "key": line.key.hex(),
        **({"raw": line.raw.hex()} if line.raw else {}),
        "slot": slot,
        "dialect": line.dialect,
        "at": samples[0].stored_at if samples else 0.0,
        "seconds": samples[0].seconds if samples else 0.0,
        "tokens": [sample.tokens for sample in samples],
    }
    if any(sample.deltas for sample in samples):
        record["deltas"] = [orjson.Fragment(sample.deltas or b"null") for sample in samples]
    if any(sample.origin for sample in samples):
        record["origins"] = [sample.origin.hex() for sample in samples]
    if line.content:
        record["call"] = orjson.Fragment(line.content)
    record["answers"] = [orjson.Fragment(sample.answer) for sample in samples]
    return seal(orjson.dumps(record))


def seal(record: bytes) -> bytes:
    """A line, with its newline, of a JSON object that lacks only the sum."""
    body = record[:-1]
    return b'%b,"sum":"%08x"}\n' % (body, zlib.crc32(body))


def is_sealed(line: bytes) -> bool:
    """Whether the sum is there and right."""
    return line[-19:] == b',"sum":"%08x"}\n' % zlib.crc32(line[:-19])


# Read for each line at start, so that what is behind it tells hexadecimal digits from others.
_HEAD = re.compile(
    rb'\{"v":%d,"key":"(.{64})",'
    rb'(?:"raw":"(.{32})",)?'
    rb'"slot":(\d{1,9}),'
    rb'"dialect":"([^"\\]*)","at":([\d.e+-]+),"seconds":([\d.e+-]+),"tokens":\[([\d,]+)\],'
    % FORMAT_VERSION
)
_MORE, _ANSWERS, _SEAL = (b'"deltas":', b'"origins":'), b'"answers":[', 20
"""What stands before deltas, origins and answers, and how many bytes behind those."""


def scan(line: bytes) -> Head:
    """The head of a line, from as little of the line as can be read. Raises as `parse` does."""
    found = _HEAD.match(line)
    # As `is_sealed`, in place: a start does this a million times.
    if found is None or line[-19:] != b',"sum":"%08x"}\n' % zlib.crc32(line[:-19]):
        return parse(line)[0]
    key, raw, slot, dialect, at, _, tokens = found.groups()
    return Head(
        unhexlify(key),
        unhexlify(raw) if raw else b"",
        int(slot),
        dialect.decode(),
        float(at),
        tokens.count(b",") + 1,
    )


def samples_of(line: bytes, key: bytes) -> list[Sample]:
    """The samples of a line that was found by its key. Raises as `parse` does."""
    found = _HEAD.match(line)
    if found and line.count(_ANSWERS) == 1 and not line.startswith(_MORE, found.end()):
        # A hit from disk comes this way: nothing is parsed that is not used.
        name, _, _, _, at, seconds, tokens = found.groups()
        if b"," not in tokens:
            if not is_sealed(line):
                raise ValueError("wrong checksum")
            if unhexlify(name) != key:
                raise ValueError("another key")
            answer = line[line.index(_ANSWERS, found.end()) + len(_ANSWERS) : -_SEAL]
            if answer[:1] != b"{":
                raise TypeError("answers are not a list of objects")
            return [Sample(answer, float(at), float(seconds), int(tokens))]
    head, samples = parse(line)
    if head.key != key:
        raise ValueError("another key")
    return samples


def call_of(line: bytes) -> tuple[bytes, str, bytes] | None:
    """The key, dialect and canonical call of a line; None if it has none, or is broken."""
    if b'"call":' not in line:
        return None
    try:
        key = scan(line).key
    except (OtherVersion, *BROKEN):
        return None
    found = _HEAD.match(line)
    if found and line.startswith(b'"call":{', found.end()) and line.count(_ANSWERS) == 1:
        # As it was written: an answer may be large, and would hold others up.
        return key, found[4].decode(), line[found.end() + 7 : line.index(_ANSWERS) - 1]
    record = orjson.loads(line)
    dialect, call = record.get("dialect"), record.get("call")
    if not (isinstance(dialect, str) and isinstance(call, dict)):
        return None
    try:
        return key, dialect, dumps(call)
    except TypeError:  # nested deeper than can be written
        return None


def is_foreign(line: bytes) -> bool:
    """Whether it is a JSON object of some other program: no version and no sum, as the original
    sglang-cached wrote them."""
    if line.startswith(b'{"v":'):
        return False
    try:
        record = orjson.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and bool(record) and "v" not in record and "sum" not in record


def parse(line: bytes) -> tuple[Head, list[Sample]]:
    """All that a line says, but for its call. Raises `OtherVersion`, or ValueError, KeyError or
    TypeError for a broken one."""
    sealed = is_sealed(line)
    record = orjson.loads(line)
    version = record["v"]
    if sealed or "sum" not in record:
        # The first version had no sum, and nobody knows what later ones have.
        if type(version) is int and (version in OLD_VERSIONS or version > FORMAT_VERSION):
            raise OtherVersion(version)
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version!r}")
    if not sealed:
        raise ValueError("wrong checksum" if "sum" in record else "no checksum")
    key = bytes.fromhex(record["key"])
    if len(key) != 32:
        raise ValueError("key is not 32 bytes")
    at, seconds, dialect = record["at"], record["seconds"], record["dialect"]
    if not (isinstance(at, int | float) and isinstance(seconds, int | float)):
        raise TypeError("times are not numbers")
    if not isinstance(dialect, str):
        raise TypeError("dialect is not text")
    slot = record["slot"]
    if type(slot) is not int or not 0 <= slot < MAX_SLOT:
        raise ValueError("slot is not a small number")
    answers, tokens = record["answers"], record["tokens"]
    if not (isinstance(answers, list) and all(isinstance(a, dict) for a in answers)):
        raise TypeError("answers are not a list of objects")
    if not (isinstance(tokens, list) and all(type(count) is int for count in tokens)):
        raise TypeError("tokens are not a list of integers")
    deltas = record.get("deltas", [None] * len(answers))
    if not (isinstance(deltas, list) and all(isinstance(d, list | None) for d in deltas)):
        raise TypeError("deltas are not a list of lists")
    origins = [bytes.fromhex(one) for one in record.get("origins", [""] * len(answers))]
    samples = [
        Sample(dumps(answer), at, seconds, count, b"" if steps is None else dumps(steps), origin)
        for answer, count, steps, origin in zip(answers, tokens, deltas, origins, strict=True)
    ]
    raw = bytes.fromhex(record.get("raw", ""))
    if len(raw) not in (0, 16):
        raise ValueError("raw is not 16 bytes")
    return Head(key, raw, slot, dialect, at, len(samples)), samples

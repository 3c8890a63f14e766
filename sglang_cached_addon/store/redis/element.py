"""A sample as an element of a list that proxies share, byte for byte.

Pure. An element is `VERSION SUM AT DIALECT {...}` and a newline, then the answer and the deltas as
they are. The first three words tell one sample from another. `AT` says when it was stored, for
scripts, which do not read JSON; `SUM` is a CRC-32 of the sample alone.
"""

from __future__ import annotations

import zlib

import orjson

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.keys import FORMAT_VERSION

_VERSION = b"%d" % FORMAT_VERSION
_UNKNOWN = b"-"


def encode(dialect: str, sample: Sample) -> bytes:
    """Makes an element. `dialect` names the API of the answer; empty if it is not known."""
    head = {
        "seconds": sample.seconds,
        "tokens": sample.tokens,
        "answer": len(sample.answer),
        "deltas": len(sample.deltas),
        **({"origin": sample.origin.hex()} if sample.origin else {}),
    }
    at = repr(float(sample.stored_at)).encode()
    rest = b"%b\n%b%b" % (orjson.dumps(head), sample.answer, sample.deltas)
    sum_ = zlib.crc32(rest, zlib.crc32(at))
    return b"%b %08x %b %b %b" % (_VERSION, sum_, at, dialect.encode() or _UNKNOWN, rest)


def name(element: bytes) -> bytes:
    """The words that tell an element from others."""
    return b" ".join(element.split(b" ", 3)[:3])


def decode(element: bytes) -> tuple[str, Sample]:
    """Returns the dialect and the sample. Raises ValueError for anything that `encode` did not
    write."""
    try:
        version, sum_, at, dialect, rest = element.split(b" ", 4)
        if version != _VERSION:
            raise ValueError("another version")
        if b"%08x" % zlib.crc32(rest, zlib.crc32(at)) != sum_:
            raise ValueError("wrong checksum")
        line, _, body = rest.partition(b"\n")
        head = orjson.loads(line)
        length, stored_at = head["answer"], float(at)
        origin = bytes.fromhex(head.get("origin", ""))
        seconds, tokens = head["seconds"], head["tokens"]
        sample = Sample(body[:length], stored_at, seconds, tokens, body[length:], origin)
    except (KeyError, TypeError) as e:
        raise ValueError(f"not a sample: {e!r}") from None
    return "" if dialect == _UNKNOWN else dialect.decode(), sample

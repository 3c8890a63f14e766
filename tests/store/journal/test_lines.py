"""Lines: read whole or by their heads, they say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.journal.extents import Head
from sglang_cached_addon.store.journal.lines import (
    BROKEN,
    OtherVersion,
    call_of,
    encode,
    is_sealed,
    parse,
    samples_of,
    scan,
    seal,
)

KEY, RAW = b"k" * 32, b"r" * 16
ONE = [Sample(b'{"text":"x"}', 1.5, 0.25, 3)]
TRICKY = b'{"answers":[1],"sum":"00000000","a":"\\"answers\\":["}'

LINES: dict[str, tuple[Any, ...]] = {
    "one": ("chat", b'{"q":1}', ONE),
    "no call": ("chat", b"", ONE),
    "named": ("chat", b"{}", ONE, RAW),
    "further": ("generate", b"{}", ONE, b"", 12),
    "both": ("generate", b"{}", ONE, RAW, 999_999_999),
    "many": ("chat", b"{}", [*ONE, Sample(b'{"y":[]}', 1.5, 0.25, 0)]),
    "streamed": ("chat", b"{}", [Sample(b"{}", 1.5, 0.25, 3, b"[1,2]")]),
    "of a rule": ("chat", b"{}", [Sample(b"{}", 1.5, 0.25, 3, origin=b"o" * 16)]),
    "of two calls": ("chat", b"{}", [*ONE, Sample(b"{}", 1.5, 0.25, 3, b"[1]", b"o" * 16)]),
    "tricky call": ("chat", TRICKY, ONE),
    "tricky answer": ("chat", b"{}", [Sample(TRICKY, 1.5, 0.25, 3)]),
    "another api": ("génération", b"{}", ONE),
    "a hyphen": ("sglang-generate", b"{}", ONE),
    "only removing": ("", b"", []),
    "tiny times": ("chat", b"{}", [Sample(b"{}", 1e-7, 1e-9, 10**12)]),
}


def test_all_ways() -> None:
    """A line says the same however it is read: whole, by its head, or by its key. A line is not
    read for another key."""
    for name, parts in LINES.items():
        all_ways(name, parts)


def all_ways(name: str, parts: tuple[Any, ...]) -> None:
    dialect, content, samples, raw, slot = (*parts, *(b"", 0)[len(parts) - 3 :])
    line = encode(Addition(KEY, dialect, content, samples, raw), slot)
    assert is_sealed(line)
    json.loads(line)
    at = samples[0].stored_at if samples else 0.0
    head = Head(KEY, raw, slot, dialect, at, len(samples))
    assert scan(line) == head
    assert samples_of(line, KEY) == samples
    assert parse(line) == (head, samples)
    assert call_of(line) == ((KEY, dialect, content) if content else None), name
    with pytest.raises(ValueError, match="another key"):
        samples_of(line, b"o" * 32)


def test_damage() -> None:
    """A line with a flipped bit, wherever it is, is broken, however it is read."""
    for parts in LINES.values():
        line = encode(Addition(KEY, *parts[:4]), *(parts[4:] or (0,)))
        for place in range(len(line)):
            broken = line[:place] + bytes([line[place] ^ 4]) + line[place + 1 :]
            assert call_of(broken) is None
            with pytest.raises(BROKEN):
                scan(broken)
            with pytest.raises(BROKEN):
                samples_of(broken, KEY)


READS: list[Callable[[bytes], object]] = [scan, parse, lambda line: samples_of(line, KEY)]
"""The ways to read a line."""


def test_other_versions() -> None:
    """A line of another version is not read as if it meant the same."""
    for version in (1, 2, 3, 5):
        record = encode(Addition(KEY, "chat", b"{}", ONE))[:-19].replace(
            b'"v":4', b'"v":%d' % version
        )
        line = seal(record + b"}")
        for read in READS:
            with pytest.raises(OtherVersion):
                read(line)
        assert call_of(line) is None


def test_odd_slots() -> None:
    """A slot is a whole number below a bound, or the line is broken."""
    for slot in (b"-1", b"1.0", b"1e3", b"1000000000", b"99999999999999999999", b'"1"'):
        line = encode(Addition(KEY, "chat", b"{}", ONE))[:-19].replace(
            b'"slot":0', b'"slot":' + slot
        )
        for read in READS:
            with pytest.raises(BROKEN):
                read(seal(line + b"}"))

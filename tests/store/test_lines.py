"""Lines: read whole or by their heads, they say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.store.index import Head
from sglang_cached_addon.store.lines import (
    OtherVersion,
    call_of,
    encode,
    is_sealed,
    key_of,
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
    "no call": ("chat", None, ONE),
    "named": ("chat", b"{}", ONE, RAW),
    "further": ("generate", b"{}", ONE, b"", 12),
    "both": ("generate", b"{}", ONE, RAW, 999_999_999),
    "many": ("chat", b"{}", [*ONE, Sample(b'{"y":[]}', 1.5, 0.25, 0)]),
    "streamed": ("chat", b"{}", [Sample(b"{}", 1.5, 0.25, 3, b"[1,2]")]),
    "tricky call": ("chat", TRICKY, ONE),
    "tricky answer": ("chat", b"{}", [Sample(TRICKY, 1.5, 0.25, 3)]),
    "another api": ("génération", b"{}", ONE),
    "a hyphen": ("sglang-generate", b"{}", ONE),
    "only removing": ("", None, []),
    "tiny times": ("chat", b"{}", [Sample(b"{}", 1e-7, 1e-9, 10**12)]),
}


@pytest.mark.parametrize("parts", LINES.values(), ids=LINES)
def test_all_ways(parts: tuple[Any, ...]) -> None:
    """What is read fast would not be what was written."""
    dialect, content, samples, raw, slot = (*parts, *(b"", 0)[len(parts) - 3 :])
    line = encode(KEY, dialect, content, samples, raw, slot)
    assert is_sealed(line)
    json.loads(line)
    at = samples[0].stored_at if samples else 0.0
    assert scan(line) == Head(KEY, raw, slot, dialect, at, len(samples))
    assert samples_of(line, KEY) == samples
    assert parse(line) == (KEY, dialect, samples, raw, slot)
    assert key_of(line) == KEY
    assert call_of(line) == (None if content is None else (KEY, dialect, content))


@pytest.mark.parametrize("parts", LINES.values(), ids=LINES)
def test_another_key(parts: tuple[Any, ...]) -> None:
    """An index that is not of this file would have us answer with anything."""
    with pytest.raises(ValueError, match="another key"):
        samples_of(encode(KEY, *parts), b"o" * 32)


@pytest.mark.parametrize("parts", LINES.values(), ids=LINES)
def test_damage(parts: tuple[Any, ...]) -> None:
    """A flipped bit would be part of an answer."""
    line = encode(KEY, *parts)
    for place in range(len(line)):
        broken = line[:place] + bytes([line[place] ^ 4]) + line[place + 1 :]
        assert key_of(broken) is None
        with pytest.raises((ValueError, KeyError, TypeError)):
            scan(broken)
        with pytest.raises((ValueError, KeyError, TypeError)):
            samples_of(broken, KEY)


@pytest.mark.parametrize("version", [1, 2, 3, 5])
def test_other_versions(version: int) -> None:
    """Another release's line would be read as if it meant the same."""
    line = seal(encode(KEY, "chat", b"{}", ONE)[:-19].replace(b'"v":4', b'"v":%d' % version) + b"}")
    for read in (scan, parse, lambda line: samples_of(line, KEY)):
        with pytest.raises(OtherVersion):
            read(line)
    assert key_of(line) is None


@pytest.mark.parametrize(
    "slot", [b"-1", b"1.0", b"1e3", b"1000000000", b"99999999999999999999", b'"1"']
)
def test_odd_slots(slot: bytes) -> None:
    """A line that nobody wrote would take memory, or end the start."""
    line = encode(KEY, "chat", b"{}", ONE)[:-19].replace(b'"slot":0', b'"slot":' + slot)
    for read in (scan, parse, lambda line: samples_of(line, KEY)):
        with pytest.raises((ValueError, TypeError)):
            read(seal(line + b"}"))

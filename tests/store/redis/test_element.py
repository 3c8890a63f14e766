"""Samples as elements of a shared list: what was written is read, and nothing else."""

from __future__ import annotations

import pytest

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.store.redis import element
from tests.tables import each

SAMPLE = Sample(b'{"text":"a\xc3\xa4 b"}', 1712345678.1234567, 0.25, 8, b'[[1,"a"]]')
PLAIN = Sample(b'{"text":"b"}', 1712345678.5, 1.0, 2)


@each("sample", [SAMPLE, PLAIN, SAMPLE._replace(origin=b"o" * 16)])
@each("dialect", ["generate", ""])
def test_round_trip(sample: Sample, dialect: str) -> None:
    assert element.decode(element.encode(dialect, sample)) == (dialect, sample)


def test_names() -> None:
    """Names tell samples apart, and depend on nothing that is not the sample's."""
    names = {element.name(element.encode(d, s)) for d in ("", "chat") for s in (SAMPLE, PLAIN)}
    assert len(names) == 2
    assert element.name(element.encode("", PLAIN)).startswith(b"4 ")
    assert element.name(element.encode("", PLAIN)).endswith(b" 1712345678.5")


def test_each_byte_counts() -> None:
    """An element with a changed byte is none, but for the name of its API."""
    data = element.encode("x", SAMPLE)
    api = data.index(b" x ") + 1
    for place in range(len(data)):
        if place != api:
            spoiled = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises(ValueError, match=r"."):
                element.decode(spoiled)


@each("data", [b"", b"junk", b"5 00000000 1.0 x {}\n", b"4 x y z w"])
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        element.decode(data)

"""What a client asks of the cache."""

from __future__ import annotations

import time

from sglang_cached_addon.core.directives import Directives, parse
from tests.tables import each

LONGEST = 2**31


def read(value: bytes) -> Directives:
    return parse({b"cache-control": value})


STORE, CACHE = Directives(no_store=True), Directives(no_cache=True)
VALUES: dict[bytes, Directives] = {
    b"no-store": STORE,
    b"no-cache": CACHE,
    b"only-if-cached": Directives(only_if_cached=True),
    b"max-age=60": Directives(max_age=60),
    b"max-age": Directives(max_age=0),
    b"no-store, no-cache, max-age=5, only-if-cached": Directives(True, True, 5, True),
    b"No-Store,MAX-AGE=7": Directives(no_store=True, max_age=7),
    b" \tno-cache \t,\t max-age=1 ": Directives(no_cache=True, max_age=1),
    b"max-age = 60": Directives(max_age=60),
    b",, ,no-store,,": STORE,
    b'no-cache="x"': CACHE,
    b"no-store=": STORE,
    b"only-if-cached=0": Directives(only_if_cached=True),
    # Text within another directive is none.
    b'max-age="60"': Directives(max_age=60),
    b'max-age="\\6\\0"': Directives(max_age=60),
    b'x="no-store, no-cache"': Directives(),
    b'x="a,b", no-store': STORE,
    b'x="a\\",no-store,\\"b"': Directives(),
    b'x="\\\\",no-store': STORE,
    b'x="", no-store': STORE,
    b'x="a"b"c,no-cache", no-store': STORE,
    b'no-cache, x="no-store': CACHE,
    b'no-cache, x="\\': CACHE,
    b'no-cache, "': CACHE,
}
UNKNOWN = [
    b"", b" ", b",", b"=", b"no-transform", b"max-stale", b"max-stale=60, min-fresh=3",
    b"s-maxage=0", b"xno-store", b"no-storex", b"no store", b"no_store", b'"no-store"',
    b"x=no-store", b"no-store; x", b"\xff\x00",
]  # fmt: skip


@each("value", [*VALUES, *UNKNOWN])
def test_directives(value: bytes) -> None:
    """Each directive is read as the client means it, from either field; those for other caches mean
    nothing here. Only a request without any is a default one."""
    asked = VALUES.get(value, Directives())
    for fields in ((b"cache-control",), (b"x-cache-control",), (b"cache-control", b"pragma")):
        found = parse(dict.fromkeys(fields, value))
        assert found == asked
        assert found.is_default is (asked == Directives())
    assert parse({b"pragma": value}) is parse({})


@each(
    ("argument", "seconds"),
    [
        (b"1", 1), (b"007", 7), (b"000", 0), (b"0" * 5000 + b"7", 7), (b"2147483647", LONGEST - 1),
        (b"2147483648", LONGEST), (b"2147483649", LONGEST), (b"9999999999", LONGEST),
        (b"99999999999", LONGEST), (b"9" * 5000, LONGEST), (b"", 0), (b'""', 0), (b'"', 0),
        (b'"6', 0), (b'6"', 0), (b"-1", 0), (b"+1", 0), (b"1.5", 0), (b"1e3", 0), (b"1 2", 0),
        (b"1_000", 0), (b"soon", 0), ("٣".encode(), 0),
    ],
)  # fmt: skip
def test_max_age(argument: bytes, seconds: int) -> None:
    """A number that cannot be read is 0, and a huge one is bounded."""
    assert read(b"max-age=" + argument).max_age == seconds


@each(
    ("first", "second", "asked"),
    [
        (b"max-age=60", b"max-age=5", Directives(max_age=5)),
        (b"max-age=60", b"max-age=x", Directives(max_age=0)),
        (b"max-age=60", b"no-store", Directives(no_store=True, max_age=60)),
        (b"no-cache", b"", Directives(no_cache=True)),
        (b"no-cache", b"only-if-cached", Directives(no_cache=True, only_if_cached=True)),
    ],
)
def test_the_stricter_one_holds(first: bytes, second: bytes, asked: Directives) -> None:
    """Of two fields both count, in whatever order."""
    for one, other in ((first, second), (second, first)):
        assert parse({b"cache-control": one, b"x-cache-control": other}) == asked
        assert read(one + b", " + other) == asked


@each("part", [b'"', b'"\\', b'\\"', b",", b'",', b"a=", b'"\\",', b"\\"])
def test_long_values_take_linear_time(part: bytes) -> None:
    """A hostile head is read in linear time."""
    begun = time.process_time()
    for value in (part * 20_000, b"x=" + part * 20_000 + b"\\", b'"' + part * 20_000):
        assert parse({b"cache-control": value}).max_age is None
    assert time.process_time() - begun < 2

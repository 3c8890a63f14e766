"""What a client asks of the cache."""

from __future__ import annotations

import time

from sglang_cached_addon.core.directives import Directives, parse
from tests.tables import each

LONGEST = 2**31


def read(value: bytes) -> Directives:
    return parse({b"cache-control": value})


@each(
    ("value", "asked"),
    [
        (b"no-store", Directives(no_store=True)),
        (b"no-cache", Directives(no_cache=True)),
        (b"only-if-cached", Directives(only_if_cached=True)),
        (b"max-age=60", Directives(max_age=60)),
        (b"max-age=0", Directives(max_age=0)),
        (
            b"no-store, no-cache, max-age=5, only-if-cached",
            Directives(True, True, 5, True),
        ),
        (b"No-Store,MAX-AGE=7", Directives(no_store=True, max_age=7)),
        (b" \tno-cache \t,\t max-age=1 ", Directives(no_cache=True, max_age=1)),
        (b"max-age = 60", Directives(max_age=60)),
        (b",, ,no-store,,", Directives(no_store=True)),
        (b'no-cache="x"', Directives(no_cache=True)),
        (b"no-store=", Directives(no_store=True)),
        (b"only-if-cached=0", Directives(only_if_cached=True)),
    ],
)
def test_directives(value: bytes, asked: Directives) -> None:
    """Each directive is read as the client means it."""
    assert read(value) == asked


@each(
    "value",
    [
        b"", b" ", b",", b"=", b"no-transform", b"max-stale", b"max-stale=60, min-fresh=3",
        b"s-maxage=0", b"xno-store", b"no-storex", b"no store", b"no_store", b'"no-store"',
        b"x=no-store", b"no-store; x", b"\xff\x00",
    ],
)  # fmt: skip
def test_what_is_unknown_is_ignored(value: bytes) -> None:
    """Directives for other caches mean nothing here."""
    assert read(value).is_default


@each(
    ("value", "asked"),
    [
        (b'max-age="60"', Directives(max_age=60)),
        (b'max-age="\\6\\0"', Directives(max_age=60)),
        (b'x="no-store, no-cache"', Directives()),
        (b'x="a,b", no-store', Directives(no_store=True)),
        (b'x="a\\",no-store,\\"b"', Directives()),
        (b'x="\\\\",no-store', Directives(no_store=True)),
        (b'x="", no-store', Directives(no_store=True)),
        (b'x="a"b"c,no-cache", no-store', Directives(no_store=True)),
        (b'no-cache, x="no-store', Directives(no_cache=True)),
        (b'no-cache, x="\\', Directives(no_cache=True)),
        (b'no-cache, "', Directives(no_cache=True)),
    ],
)
def test_commas_in_quotes_part_nothing(value: bytes, asked: Directives) -> None:
    """Text within an unknown directive is no directive."""
    assert read(value) == asked


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


def test_max_age_without_an_argument() -> None:
    """A `max-age` that cannot be read allows no age."""
    assert read(b"max-age").max_age == 0


@each("names", [(b"cache-control",), (b"x-cache-control",)])
def test_both_fields_are_read(names: tuple[bytes, ...]) -> None:
    """`X-Cache-Control` counts like the standard field."""
    assert parse(dict.fromkeys(names, b"no-cache")) == Directives(no_cache=True)


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


def test_a_head_without_directives() -> None:
    """A request without directives gives the one default value."""
    asked = parse({b"content-type": b"application/json", b"pragma": b"x"})
    assert asked.is_default
    assert asked is parse({})


@each(
    "asked",
    [
        Directives(no_store=True),
        Directives(no_cache=True),
        Directives(max_age=0),
        Directives(only_if_cached=True),
    ],
)
def test_default_is_told_apart(asked: Directives) -> None:
    """Only a request without any directive is a default one."""
    assert not asked.is_default
    assert Directives().is_default


@each("part", [b'"', b'"\\', b'\\"', b",", b'",', b"a=", b'"\\",', b"\\"])
def test_long_values_take_linear_time(part: bytes) -> None:
    """A hostile head is read in linear time."""
    begun = time.process_time()
    for value in (part * 20_000, b"x=" + part * 20_000 + b"\\", b'"' + part * 20_000):
        assert parse({b"cache-control": value}).max_age is None
    assert time.process_time() - begun < 2

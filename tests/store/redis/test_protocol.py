"""Scripts do once what is asked twice, and answers are read in either form."""

from __future__ import annotations

from math import inf

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.store.redis import element
from sglang_cached_addon.store.redis.protocol import entries, numbers, put
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import lists

pytestmark = needs_redis


def test_written_twice(server: RedisServer) -> None:
    """A write that is done again, as its answer was lost, changes nothing and is answered alike."""
    samples = [Sample(b'{"":"%c"}' % letter, 1.0, 0.5, 1) for letter in b"abcd"]
    elements = [element.encode("chat", sample) for sample in samples]
    cases = [
        (elements[:2], 0, -inf, [0, 1]),
        (elements[1:3], 1, -inf, [1, 2]),
        (elements[3:], 9, -inf, [3]),  # the list is shorter than was thought
        (elements[1:2], 0, inf, [1]),  # all may be replaced, and it is there
    ]
    with server.client() as client:
        for some, base, since, places in cases:
            for _ in range(2):
                command = put(b"list", some, base, since, inf)
                assert client.execute_command(*command) == places
    assert lists(server) == {}
    with server.client() as client:
        assert client.lrange("list", 0, -1) == elements


def test_answers() -> None:
    """Numbers and entries are read as both protocols of Redis give them."""
    wanted = {"a b": 1, "ö": 1 << 52}
    for answer in (
        [b"a b", b"1", "ö".encode(), b"4503599627370496"],
        [[b"a b", 1.0], ["ö".encode(), 4503599627370496.0]],
        [(b"a b", 1.0), ("ö".encode(), 4503599627370496.0)],
    ):
        assert numbers(answer) == wanted, answer
    for fields in ([b"key", b"x"], {b"key": b"x"}):
        assert entries([[b"1-0", fields], (b"1-1", fields)]) == [
            ("1-0", b"key", b"x"),
            ("1-1", b"key", b"x"),
        ]

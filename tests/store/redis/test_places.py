"""The scripts: what one proxy has no other gets, and what is lost is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from string import ascii_lowercase
from typing import Any

import redis

from sglang_cached_addon.store.redis.places import Pass, RunCommands, Said, is_held, read, shown
from tests.redis import RedisServer, needs_redis

pytestmark = needs_redis

ONE, TWO, THREE = (RunCommands("a", proxy, 1000.0) for proxy in ("one", "two", "three"))
KEY = "sglang-cached:4:{run:a}"


class Asker:
    """Proxies that know the pass of a run."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.current = Pass()
        self.words = iter(ascii_lowercase)

    def take(self, who: RunCommands, count: int, *marks: int, current: Pass | None = None) -> Said:
        return self.takes(who, [(count, marks)], current)

    def takes(
        self,
        who: RunCommands,
        wants: Sequence[tuple[int, Sequence[int]]],
        current: Pass | None = None,
    ) -> Said:
        command = who.take(current or self.current, next(self.words), wants)
        return self._heard(self.client.execute_command(*command))

    def tell(self, who: RunCommands, *told: str, counts: Sequence[int] = (0, 0, 0)) -> Said:
        command = who.tell(self.current, next(self.words), 5.0, counts, told)
        return self._heard(self.client.execute_command(*command))

    def _heard(self, result: Any) -> Said:
        answer = read(result)
        self.current = answer.current
        return answer

    def show(self, *args: Any) -> dict[str, Any] | None:
        return shown("a", self.client.execute_command(*ONE.show(*args)))

    def places(self) -> int:
        found = self.show()
        assert found
        return int(found["places"])


def test_taking(server: RedisServer) -> None:
    """The first ones are given that nobody has, so many of each group; those that are taken for
    good are named."""
    with server.client() as client:
        asker = Asker(client)
        first = asker.take(ONE, 2, 1, 2, 3)
        assert first == (Pass(1, "a"), True, [1, 2], [])
        assert asker.take(TWO, 1, 1, 2, 3) == (Pass(1, "a"), True, [3], [])
        asker.tell(ONE, "k1", "f2")
        two = asker.takes(TWO, [(1, (1, 2)), (2, (1, 3, 4)), (0, (5,)), (1, (6,))])
        assert two == (Pass(1, "a"), True, [2, 4, 6], [1, 1])
        assert asker.take(TWO, 1, 2) == (Pass(1, "a"), True, [], [])
        assert asker.places() == 5
        assert all(0 < client.ttl(key) <= 1000 for key in client.keys(f"{KEY}*"))


def test_telling(server: RedisServer) -> None:
    """What is told twice is so once; nobody frees or holds what another has."""
    with server.client() as client:
        asker = Asker(client)
        asker.take(ONE, 2, 1, 2)
        for _ in range(2):
            asker.tell(ONE, "k1")
            asker.tell(TWO, "f2", "h2", "h1", "h3")
        assert asker.take(ONE, 3, 1, 2, 3).granted == []
        assert asker.take(TWO, 3, 1, 2, 3).refused == [1]
        assert asker.take(TWO, 1, 2).granted == []
        asker.tell(ONE, "f2")
        assert asker.take(TWO, 1, 1, 2, 3).granted == [2]
        asker.tell(ONE, counts=(3, 2, 1))
        asker.tell(ONE, counts=(1, -1, 0))
        assert asker.show() == {
            "name": "a", "calls": 4, "places": 3, "reused": 1, "generated": 1,
            "first": 5.0, "last": 5.0, "fresh_since": None,
        }  # fmt: skip


def test_a_proxy_that_dies(server: RedisServer) -> None:
    """What it held is free within seconds; what it had delivered is not."""
    with server.client() as client:
        asker = Asker(client)
        asker.take(ONE, 3, 1, 2, 3)
        asker.tell(ONE, "k1")
        ends = int(client.hget(f"{KEY}:held", "2").split()[0])
        seconds, micros = client.time()
        assert 3000 < ends - (seconds * 1000 + micros // 1000) <= 5000
        client.hset(f"{KEY}:held", "2", f"{ends - 5001} one")  # as if so much time had passed
        asker.tell(TWO, "h2")
        assert asker.take(THREE, 1, 1, 2, 3).granted == []
        client.hset(f"{KEY}:held", "3", f"{ends - 5001} one")
        assert asker.take(THREE, 1, 1, 2, 3).granted == [3]
        client.hset(f"{KEY}:held", "3", f"{ends - 5001} two")
        assert asker.places() == 2


def test_changes(server: RedisServer) -> None:
    """What was taken before a run begins anew counts no more, and who has not heard of that is
    told, and gets nothing."""
    with server.client() as client:
        asker = Asker(client)
        assert asker.show() is None
        for change in ("rewind", "delete"):
            assert asker.show(change) is None
        asker.take(ONE, 2, 1, 2)
        asker.tell(ONE, counts=(1, 0, 1))
        old = asker.current
        rewound = asker.show("rewind", old.number, 6.0)
        assert rewound
        assert (rewound["places"], rewound["calls"], rewound["last"]) == (0, 1, 5.0)
        late = asker.tell(ONE, "k1", counts=(1, 1, 1))
        assert late == (Pass(2), False, [], [])
        assert asker.take(TWO, 1, 1) == (Pass(2, "d"), True, [1], [])
        fresh = asker.show("fresh", 2, 7.0)
        assert fresh
        assert (fresh["places"], fresh["fresh_since"], fresh["calls"]) == (0, 7.0, 1)
        assert asker.take(TWO, 1, 1) == (Pass(3, "", 7.0), False, [], [])
        assert asker.take(TWO, 1, 1).granted == [1]
        gone = asker.show("delete", 3, 8.0)
        assert gone
        assert (gone["places"], gone["calls"]) == (1, 1)
        assert asker.show() is None
        assert client.keys() == [KEY.encode()]
        new = asker.show("fresh", 9, 9.0)
        assert new
        assert (new["calls"], new["first"]) == (0, 9.0)
        assert asker.tell(ONE).current == Pass(10, "", 9.0)


def test_what_is_lost(server: RedisServer) -> None:
    """Whoever knew of it hears of that, and nothing is given out until all have had the time to
    tell again; no number ever falls."""
    for lose in (lambda c: c.flushall(), lambda c: c.delete(f"{KEY}:taken")):
        with server.client() as client:
            client.flushall()
            client.execute_command(*ONE.show("fresh", 6, 7.0))
            asker = Asker(client)
            asker.current = Pass(7, "", 7.0)
            asker.take(ONE, 2, 1, 2)
            known = asker.current
            assert known == Pass(7, "a", 7.0)
            lose(client)
            assert asker.take(ONE, 1, 3) == (Pass(7, "b", 7.0), False, [], [])
            asker.current = known
            assert asker.tell(TWO, "k1") == (Pass(7, "b", 7.0), False, [], [])
            assert asker.tell(TWO, "k1").is_done
            assert asker.take(ONE, 1, 1, 2) == (Pass(7, "b", 7.0), False, [], [])
            client.hset(KEY, "quiet", 1)  # as if so much time had passed
            assert asker.take(ONE, 1, 1, 2) == (Pass(7, "b", 7.0), True, [2], [1])
            assert asker.take(ONE, 1, 4, current=Pass(6, "a")).current.number == 7


def test_for_ever(server: RedisServer) -> None:
    """Without a time to forget it after, it is not forgotten."""
    with server.client() as client:
        asker = Asker(client)
        asker.take(RunCommands("a", "one", inf), 1, 1)
        assert {client.ttl(key) for key in client.keys("*")} == {-1}


def test_what_is_held() -> None:
    """What the server says of a mark holds until the time that it says."""
    for said, held in ((None, False), (b"5000 ab", True), (b"4999 ab", True), (b"4000 ab", False)):
        assert is_held(said, 4.5) is held, said

"""Looking at what is stored without using it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.service.peek import Peek
from sglang_cached_addon.store import DiskStore, Limits
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.memory import MemoryStore
from tests.tables import each
from tests.upstream.scripted import bounded

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
SAMPLES = [Sample(b'{"n":%d}' % n, time.time() + n, 1.0, 1) for n in range(-3, 0)]
OLD = Sample(b'{"old":1}', 5.0, 1.0, 1)


@contextmanager
def filled(kind: str, folder: Path) -> Iterator[OpenStore]:
    """A store with two pools, the first of which was used last; one has a sample that is too
    old."""
    store: OpenStore
    with closing(_opened(kind, folder)) as store:
        store.append(Addition(B, "chat", b'{"q":2}', [OLD, *SAMPLES[:1]]))
        store.append(Addition(A, "chat", b'{"q":1}', SAMPLES))
    if kind == "disk":
        store = _opened(kind, folder)  # nothing of it is in memory
    with closing(store):
        yield store


def _opened(kind: str, folder: Path) -> OpenStore:
    if kind == "disk":
        return DiskStore(folder, limits=Limits(inf, inf, 3600.0, inf))
    return MemoryStore(ttl=3600.0)


@each("kind", ["disk", "memory"])
@bounded
async def test_look(kind: str, tmp_path: Path) -> None:
    """What is stored and has not expired is seen, and nothing is used by that."""
    with filled(kind, tmp_path) as store:
        order, held = list(store.index), list(store.memory)
        peek = Peek(store)
        assert (list(peek.get(A)), peek.size(A)) == ([], 0)
        await peek.bring({A: 1, C: 1})
        await peek.bring({B: 1})
        assert [list(peek.get(key)) for key in (A, B, C)] == [SAMPLES, SAMPLES[:1], []]
        assert (list(store.index), list(store.memory)) == (order, held)
        assert not peek.append(Addition(A, "chat", b"", SAMPLES))
        peek.touch([B])
        assert (list(store.index), list(store.memory)) == (order, held)
        assert (peek.find(b"x" * 16), peek.room(), peek.has_room(0)) == (None, None, False)
        assert peek.is_expired(5.0)
        assert peek.clears == store.clears
        assert abs(peek.now - store.now) < 60
        peek.keep(A, SAMPLES[1:])
        assert (list(peek.get(A)), list(store.get(A))) == (SAMPLES[1:], SAMPLES)

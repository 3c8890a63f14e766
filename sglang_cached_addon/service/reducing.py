"""Calls as the rules have them that users have set: what they match is left out of their keys.

A call in which nothing is left out has the key that it has without rules, and so has one that is
stored as it is. Rules are for what is generated alone: a vector, a score or a count of tokens is of
its text and of no other. What is sent is always the client's own body. Free of mitmproxy, clocks
and I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from math import inf
from typing import Any

from sglang_cached_addon.core.cache import Store
from sglang_cached_addon.core.call import as_streams
from sglang_cached_addon.core.ignoring import NOTHING, Ignoring, LeftOut
from sglang_cached_addon.core.places import pool_of
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.flight import Flight

_Read = list[tuple[bytes, LeftOut]]
"""The items of a body: what they are named by, and what was left out of that."""


class Reducing:
    """The rules of one cache."""

    def __init__(self, ignoring: Ignoring, store: Store) -> None:
        self._ignoring = ignoring
        self._store = store

    def reduced(self, known: Known) -> Known:
        """The call with the keys that it has by the rules."""
        if known.call.is_pure:
            return known
        read = self._read(known, known.call.body, known.call.items)
        if all(left_out is NOTHING for _, left_out in read) or self._is_stored(known):
            return known
        names = known.naming([content for content, _ in read])
        if known.call.is_seeded and len(set(names)) < len(set(known.keys)):
            return known  # in a pool with a seed, each place has a sample of its own

        def contents(body: dict[str, Any]) -> Iterable[bytes]:
            return [content for content, _ in self._read(known, body, _items(known, body))]

        return replace(
            known,
            keys=names,
            pools=tuple(map(pool_of, names)),
            raw=b"",  # a pool's first sample may be of another body
            hits={},
            left_out=tuple(left_out for _, left_out in read),
            contents=contents,
        )

    def _is_stored(self, known: Known) -> bool:
        """Whether all that a call wants is stored under the keys that it has without rules: from
        before they were set, or by a proxy that has none."""
        return all(
            known.call.n * times <= self._size(key) for key, times in Counter(known.keys).items()
        )

    def _size(self, key: bytes) -> float:
        size = self._store.size(key)
        return size if size < inf else len(self._store.get(key))

    def _read(self, known: Known, body: dict[str, Any], items: tuple[bytes, ...]) -> _Read:
        """The items of a body, which are these without rules."""
        own = [(item, NOTHING) for item in items]
        reduction = self._ignoring.reduce(known.dialect.name, body, items)
        if reduction is None:
            return own
        try:
            reduced = _items(known, reduction.body)
        except Refused:
            return own
        return [reduction.read(item) for item in reduced] if len(reduced) == len(items) else own


def _items(known: Known, body: dict[str, Any]) -> tuple[bytes, ...]:
    """The items of a body that is read as that of the call was. Raises `Refused`."""
    call = known.dialect.read(body)
    return (as_streams(call) if known.call.is_apart else call).items


def ignored(known: Known, plan: Plan) -> str:
    """What is to be said of an answer of what is stored by a plan: whose samples it has, where they
    were generated for calls that differ in what rules leave out."""
    return _told(known, [[sample.origin for sample in pool] for pool in plan.stored])


def ignored_along(known: Known, flight: Flight) -> str:
    """The same of a stream that another call fetches."""
    return _told(known, flight.origins)


def _told(known: Known, origins: Iterable[Collection[bytes]]) -> str:
    names: dict[str, None] = {}
    for left_out, some in zip(known.left_out, origins, strict=False):
        if any(origin != left_out.origin for origin in some):
            names |= dict.fromkeys(left_out.rules)
    return f"ignored: {', '.join(names)}" if names else ""

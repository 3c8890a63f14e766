"""Where entries are looked for: in a journal, or in memory.

For a thread. The newest come first: in a journal those that were stored last, in memory those whose
keys have come last. Does not know what is looked for but by a `Sieve`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import NamedTuple, Protocol

from sglang_cached_addon.catalog.entry import Entry
from sglang_cached_addon.catalog.query import BadQuery
from sglang_cached_addon.catalog.sieve import START, Sieve
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.families import FAMILY
from sglang_cached_addon.dialects.base import Dialect
from sglang_cached_addon.store.journal import Journal, lines
from sglang_cached_addon.store.journal.backwards import Mark, Step, lines_before
from sglang_cached_addon.store.journal.extents import Extent, Head
from sglang_cached_addon.store.journal.follower import Follower
from sglang_cached_addon.store.memory import MemoryStore

CALL_SECONDS = 0.3
"""How long it is looked for what was asked."""

MOST_NAMED = 21
"""How many keys that begin alike are looked for."""

_KEY = slice(len(START), len(START) + 64)


class Seen(NamedTuple):
    """A place that was come to, and the wanted entry that is there."""

    cursor: object
    """Written as text, it says from where a later look goes on."""
    entry: Entry | None


class Shelf(Protocol):
    """Where entries are."""

    def get(self, key: bytes, *, seeks_call: bool = False) -> Entry | None:
        """The entry of a key. What was asked may stand where nothing else of it does any more: it
        is there for who `seeks_call`, if it is found soon. Raises OSError."""

    def look(self, sieve: Sieve, cursor: str) -> Iterator[Seen]:
        """What is wanted, from a cursor on; now and then only how far that is. Raises BadQuery
        for a cursor that nobody gave, and OSError."""

    def named(self, prefix: str) -> list[bytes]:
        """The keys that begin so."""


@dataclass(frozen=True, slots=True)
class JournalShelf:
    """The entries of a folder."""

    journal: Journal | Follower
    dialects: Mapping[str, Dialect]
    """By name."""
    is_expired: Callable[[float], bool] = lambda stored_at: False
    """Whether what was stored then is too old to exist."""

    def get(self, key: bytes, *, seeks_call: bool = False) -> Entry | None:
        api, content, samples, weights = "", b"", list[Sample](), dict[int, int]()
        for extent, line in self.journal.lines(key):
            try:
                some = lines.samples_of(line, key)[extent.skip : extent.skip + extent.samples]
            except (lines.OtherVersion, *lines.BROKEN):
                continue
            samples += (one for one in some if not self.is_expired(one.stored_at))
            weights[extent.place.offset] = extent.place.length
            found = lines.call_of(line)
            content = found[2] if found else content
            api = lines.scan(line).dialect
        if not samples or api == FAMILY:
            return None
        if seeks_call and not content:
            content = self._call(key)
        return Entry(key, api, samples, content, sum(weights.values()), self.dialects.get(api))

    def _call(self, key: bytes) -> bytes:
        """What was asked, where the line that says so counts no more."""
        deadline = time.monotonic() + CALL_SECONDS
        for line in self._lines_of(key):
            if line and (found := lines.call_of(line)) and found[0] == key:
                return found[2]
            if time.monotonic() > deadline:
                break
        return b""

    def look(self, sieve: Sieve, cursor: str) -> Iterator[Seen]:
        mark = _mark(cursor) if cursor else None
        journal = self.journal
        for step in lines_before(journal.path, mark, journal.waiting(), sieve.hits):
            found = self._wanted(step, sieve) if step.is_hit else None
            if found or not step.is_hit:
                yield Seen(step, found)

    def _wanted(self, step: Step, sieve: Sieve) -> Entry | None:
        """The entry that a line is of, if it is wanted, and this is the newest of its lines that
        are."""
        line = step.line
        if not line.startswith(START):
            return None
        try:
            key = bytes.fromhex(line[_KEY].decode())
            if not sieve.may_be(key):
                return None
            head = lines.scan(line)
        except (lines.OtherVersion, *lines.BROKEN):
            return None
        extents = self.journal.extents(key)
        mine = [extent for extent in extents if _is_of(extent, head)]
        last = (mine[-1].at, mine[-1].slot) if mine else (-inf, 0)
        later = [extent for extent in extents if (extent.at, extent.slot) > last]
        entry = self.get(key) if sieve.query.text or not later else None
        if entry is None or not sieve.takes(entry):
            return None
        return self._with_text(entry, step.line, mine, later, sieve)

    def _with_text(
        self, entry: Entry, line: bytes, mine: list[Extent], later: list[Extent], sieve: Sieve
    ) -> Entry | None:
        """The entry, if the text that is wanted is in a line, and in no later one of it."""
        if not sieve.query.text:
            return entry
        call = lines.call_of(line)
        if call and not entry.content:  # what was asked stands in a line that counts no more
            entry = replace(entry, content=call[2])
        if not sieve.has_text(_part(entry, line, mine)):
            return None
        slots = {extent.slot for extent in later}
        for extent, other in self.journal.lines(entry.key):
            if extent.slot in slots and sieve.has_text(_part(entry, other, [extent])):
                return None
        return entry

    def named(self, prefix: str) -> list[bytes]:
        keys = [bytes.fromhex(prefix)] if len(prefix) == 64 else self.journal.keys()
        return [key for key in _beginning(keys, prefix) if self.get(key)]

    def _lines_of(self, key: bytes) -> Iterator[bytes | None]:
        """The lines of a key, newest first, as far as they are whole; None now and then."""
        needle = START + key.hex().encode()

        def hits(data: bytes) -> Iterator[int]:
            end = len(data)
            while (at := data.rfind(needle, 0, end)) >= 0:
                yield at
                end = at

        journal = self.journal
        for step in lines_before(journal.path, None, journal.waiting(), hits):
            is_one = step.is_hit and step.line.startswith(needle) and lines.is_sealed(step.line)
            yield step.line if is_one else None


def _part(entry: Entry, line: bytes, extents: list[Extent]) -> Entry:
    """What one line has of an entry."""
    found = lines.call_of(line)
    samples = lines.samples_of(line, entry.key) if extents else []
    some = [s for e in extents for s in samples[e.skip : e.skip + e.samples]]
    return replace(entry, samples=some, content=found[2] if found else b"")


def _mark(cursor: str) -> Mark:
    try:
        return Mark.read(cursor)
    except ValueError:
        raise BadQuery(f"cursor={cursor}: takes what `next` of a page has said") from None


def _is_of(extent: Extent, head: Head) -> bool:
    """Whether an extent is of the line with this head."""
    return extent.at == head.at and head.slot <= extent.slot < head.slot + head.samples


@dataclass(frozen=True, slots=True)
class MemoryShelf:
    """The entries of a store that has no folder."""

    memory: MemoryStore
    dialects: Mapping[str, Dialect]

    def get(self, key: bytes, *, seeks_call: bool = False) -> Entry | None:
        found = self.memory.peek(key)
        if not found:
            return None
        api, content, samples = found
        samples = tuple(s for s in samples if not self.memory.is_expired(s.stored_at))
        if api == FAMILY or not samples:
            return None
        size = len(content) + sum(len(s.answer) + len(s.deltas) for s in samples)
        return Entry(key, api, samples, content, size, self.dialects.get(api))

    def look(self, sieve: Sieve, cursor: str) -> Iterator[Seen]:
        keys = self.memory.by_age()
        if cursor and not cursor.isdecimal():
            raise BadQuery(f"cursor={cursor}: takes what `next` of a page has said")
        place = int(cursor) if cursor else len(keys)
        for at in reversed(range(min(place, len(keys)))):
            entry = self.get(keys[at]) if sieve.may_be(keys[at]) else None
            is_wanted = entry and sieve.takes(entry) and sieve.has_text(entry)
            yield Seen(at, entry if is_wanted else None)

    def named(self, prefix: str) -> list[bytes]:
        keys = [bytes.fromhex(prefix)] if len(prefix) == 64 else self.memory.by_age()
        return [key for key in _beginning(keys, prefix) if self.get(key)]


def _beginning(keys: Iterable[bytes], prefix: str) -> list[bytes]:
    """The keys that begin so, and not too many of them."""
    start = bytes.fromhex(prefix[: len(prefix) // 2 * 2])
    near = [key for key in keys if key.startswith(start)]
    return list(islice((key for key in near if key.hex().startswith(prefix)), MOST_NAMED))

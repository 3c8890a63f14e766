"""What is stored in a folder, as entries and as records of an archive, beside whoever has it.

An entry is read when its turn comes, so that memory is only needed for the largest one, and for the
index. Synchronous. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from sglang_cached_addon.archive.record import Record, Told
from sglang_cached_addon.catalog.entry import Entry, Models
from sglang_cached_addon.catalog.query import NotFound, Query
from sglang_cached_addon.catalog.sieve import sieve
from sglang_cached_addon.core import keys
from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.core.families import FAMILY
from sglang_cached_addon.core.places import pool_of
from sglang_cached_addon.dialects import installed, legible
from sglang_cached_addon.store import run_lines, run_log
from sglang_cached_addon.store.journal.snapshot import Snapshot
from sglang_cached_addon.store.state import StateFile
from sglang_cached_addon.upstream.facts import Facts


def carried(facts: Facts) -> dict[str, Any]:
    """What is known of a server, for who has the same one: not where it is, and not whom it lets
    ask."""
    return replace(facts, url="", open=frozenset()).as_json()


class Reading:
    """What is wanted of one folder."""

    def __init__(self, folder: Path, query: Query) -> None:
        """Raises `NotFound`, ValueError for a `state.json` that makes no sense, and OSError."""
        # The runs come first: what they have taken is there, then.
        self._runs = run_lines.read(folder / run_log.NAME)
        self._facts = Facts.read(StateFile(folder, is_ours=False).load())
        self._dialects = {dialect.name: dialect for dialect in installed().values()}
        self._fingerprints = {keys.prefix(one): one for one in self._facts.names}
        self._query = query
        self._sieve = sieve(query, self._models(), self._used())
        self._snapshot = Snapshot(folder / "cache.jsonl")

    @property
    def broken(self) -> int:
        """Lines that could not be read."""
        return self._snapshot.broken

    @property
    def state(self) -> dict[str, Any]:
        """As `carried`."""
        return carried(self._facts)

    def entries(self) -> Iterator[Entry]:
        """The entries that are wanted."""
        return (entry for _, entry in self._pools() if entry)

    def records(self) -> Iterator[Record]:
        """The same with all that an archive has; and unless entries are picked out, which variants
        of greedy calls there were, so that they go on answering one another."""
        query = replace(self._query, model="all", limit=0, cursor="")
        is_picked = query != replace(Query(), limit=0)
        for pool, entry in self._pools():
            if entry:
                yield self._record(pool, entry)
            elif not is_picked:
                told = [Told("", None, ()) for _ in pool.samples]
                yield replace(self._of_model(pool), told=told)

    def _pools(self) -> Iterator[tuple[Addition, Entry | None]]:
        """The pools that are wanted, each as an entry, but for those of variants."""
        for pool in self._snapshot.pools(self._sieve.may_be):
            if pool.dialect == FAMILY:
                yield pool, None
                continue
            entry = Entry(
                pool.key,
                pool.dialect,
                pool.samples,
                pool.content,
                0,
                self._dialects.get(pool.dialect),
            )
            if self._sieve.takes(entry) and self._sieve.has_text(entry):
                yield pool, entry

    def _record(self, pool: Addition, entry: Entry) -> Record:
        number = pool_of(pool.key)
        taken = [(name, run.places[number]) for name, run in sorted(self._runs.items())]
        told = []
        for place, sample in enumerate(pool.samples):
            runs = [name for name, places in taken if place in places]
            reason = legible.finish_reason(orjson.loads(sample.answer))
            told.append(Told(entry.said(sample), reason, runs))
        return replace(self._of_model(pool), texts=entry.asked, told=told)

    def _of_model(self, pool: Addition) -> Record:
        fingerprint = self._fingerprints.get(pool.key[: keys.PREFIX], "")
        return Record(pool, fingerprint, self._facts.names.get(fingerprint, ""))

    def _models(self) -> Models:
        facts = self._facts
        names = {prefix: facts.names[one] for prefix, one in self._fingerprints.items()}
        if facts.identity is None:
            return Models(names)
        return Models(names, keys.prefix(facts.epochs.fingerprint(facts.identity)))

    def _used(self) -> Any:
        """Whether the run that is asked for has used a pool; None if none is. Raises
        `NotFound`."""
        if not self._query.run:
            return None
        run = self._runs.get(self._query.run)
        if run is None:
            raise NotFound(f"there is no run {self._query.run}")
        pools = frozenset(run.places)
        return lambda key, samples: pool_of(key) in pools

"""Greedy calls that are answered by what is stored for others of their family.

Which variants of calls there were is kept in the store itself, in a pool for each API, model and
tenant. From these come the keys of the calls that a family may have had; what their pools hold is
given as it is, or cut, where it certainly is what upstream would answer, and is stored under the
call's own key. Knows asyncio, and nothing of who is asked for the text of tokens.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from sglang_cached_addon.core import families, planning
from sglang_cached_addon.core.cache import Addition, Sample, Store
from sglang_cached_addon.core.families import FAMILY, Variant
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects.base import Family, family_of
from sglang_cached_addon.dialects.judging import dump
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.lookup import Lookup

MOST_VARIANTS = 64
"""So many variants of calls are remembered."""

MOST_BYTES = 4 << 20
"""So many bytes are read to find a family, in some 20 ms."""

_POOL = b'{"variants":true}'
"""The content whose key names the pool of the variants; no call has it."""

Spell = Callable[[dict[str, Any]], Awaitable[Sequence[str] | None]]
"""A function that has upstream answer a body of `/detokenize`: the texts, or None without any."""


@dataclass(frozen=True, slots=True)
class Found:
    """A sample for a call, out of that of another one."""

    item: int
    sample: Sample
    tokens: int
    """How many tokens the other sample has."""

    @property
    def is_cut(self) -> bool:
        return self.sample.tokens < self.tokens


class Families:
    """The families of the calls to one upstream."""

    def __init__(self, lookup: Lookup, store: Store) -> None:
        self._lookup = lookup
        self._store = store

    def variant(self, known: Known) -> Variant | None:
        """Which call of its family a call is; None for one that has none."""
        if not (known.call.is_greedy and self._lookup.server.reuse.is_possible):
            return None
        family = family_of(known.dialect)
        return family.variant(known.call.body) if family else None

    def _pool(self, known: Known) -> bytes:
        return known.naming((_POOL,))[0]

    def note(self, known: Known) -> None:
        """Remembers the variant of a call that is stored."""
        if variant := self.variant(known):
            key = self._pool(known)
            names = [sample.answer for sample in self._store.get(key)]
            if variant.name not in names and len(names) < MOST_VARIANTS:
                one = Sample(variant.name, self._store.now, 0.0, 0)
                self._store.append(Addition(key, FAMILY, b"", [one]))

    async def reuse(
        self, known: Known, plan: Plan, spell: Spell | None, *, is_stored: bool
    ) -> list[Found]:
        """Samples for those items of a call of which nothing is stored, as far as they can be made
        of others'; they are its own from then on, if they may be stored. With `spell`, upstream may
        be asked for texts."""
        clears = self._store.clears
        found = await self._find(known, plan, spell)
        if clears != self._store.clears or not self._lookup.is_present(known):
            return []
        new = [(one.item, one.sample) for one in found]
        for one in planning.additions(plan, new, known.dialect.name, known.raw):
            if is_stored and not self._store.get(one.key):
                self._store.append(one)
        if new and is_stored:
            self.note(known)
        return found

    async def _find(self, known: Known, plan: Plan, spell: Spell | None) -> list[Found]:
        family, wanted = family_of(known.dialect), self.variant(known)
        if not (family and wanted):
            return []
        await self._bring({**plan.needs, self._pool(known): MOST_VARIANTS})
        lacks = enumerate(plan.shortfalls)
        short = [i for i, n in lacks if n == known.call.n and not self._store.get(plan.keys[i])]
        relatives = list(self._relatives(known, family, wanted))
        await self._bring({keys[i]: known.call.n for _, keys in relatives for i in short})
        found: list[Found] = []
        taken: Counter[bytes] = Counter()
        for i in short:
            await asyncio.sleep(0)  # others have their turn
            start = taken[plan.keys[i]]
            taken[plan.keys[i]] += known.call.n
            making = _Making(family, known, wanted, self._lookup.server.reuse, spell)
            for has, keys in relatives:
                pool = self._store.get(keys[i])[start : start + known.call.n]
                if len(pool) < known.call.n:
                    continue
                made = await making.all_of(pool, has)
                found += [Found(i, sample, tokens) for sample, tokens in made or ()]
                if made or making.is_spelled:
                    break
        return found

    async def _bring(self, needs: Mapping[bytes, int]) -> None:
        if needs and (bringing := self._store.bring(needs, claims=False)):
            await bringing

    def _relatives(
        self, known: Known, family: Family, wanted: Variant
    ) -> Iterator[tuple[Variant, tuple[bytes, ...]]]:
        """Calls of the same family whose answers may serve, with their keys: those of which least
        is to be cut come first."""
        body, size = known.call.body, sum(map(len, known.call.items))
        most = MOST_BYTES // max(1, size)
        samples = self._store.get(self._pool(known))
        bodies = [family.ask(body, orjson.loads(sample.answer)) for sample in samples[:most]]
        variants = [(has, one) for one in bodies if (has := family.variant(one))]
        for has, one in sorted(variants, key=lambda v: (v[0].limit < wanted.limit, v[0].limit)):
            if has.may_serve(wanted):
                yield has, known.keys_of(one)


@dataclass(slots=True)
class _Making:
    """Makes answers to one call of answers to others."""

    family: Family
    known: Known
    wanted: Variant
    server: families.Reuse
    spell: Spell | None
    is_spelled: bool = False
    """Upstream was asked for a text. That of a longer answer would be no better."""

    async def all_of(self, pool: Sequence[Sample], has: Variant) -> list[tuple[Sample, int]] | None:
        """The samples of a pool as they answer the call; None unless all of them do."""
        made = []
        for sample in pool:
            try:
                one = await self._one_of(sample, has)
            except (Refused, KeyError, TypeError, ValueError):  # not as this dialect writes them
                return None
            if one is None:
                return None
            made.append((one, sample.tokens))
        return made

    async def _one_of(self, sample: Sample, has: Variant) -> Sample | None:
        answer = orjson.loads(sample.answer)
        steps = orjson.loads(sample.deltas) if sample.deltas else None
        ended = self.family.ended(answer)
        count = families.fit(self.wanted, has, ended, self.server) if ended else None
        if ended is None or count is None:
            return None
        is_bare = bool(has.scores) and not self.wanted.scores
        if count < ended.tokens:
            text = await self._text(answer, steps, count)
            if text is None:
                return None
            steps = self.family.cut(answer, steps, count, text)
        elif not is_bare:
            return sample
        if is_bare:
            steps = self.family.without_scores(answer, steps)
        deltas = dump(steps) if steps else b""
        return sample._replace(answer=dump(answer), deltas=deltas, tokens=count)

    async def _text(self, answer: Any, steps: list[Any] | None, count: int) -> str | None:
        """The text of the first tokens; None where it is not certain."""
        text = self.family.text_at(answer, steps, count)
        spell, asked = self.spell, self.family.spelling(self.known.call.body, answer, count)
        if text is None and spell and asked:
            self.is_spelled = True
            texts = await spell(asked)
            # All of it is spelled as it was generated, and so is what it begins with.
            if texts and texts[1] == (whole := self.family.text(answer)):
                text = texts[0] if whole.startswith(texts[0]) else None
        return None if text is None or text.endswith("\N{REPLACEMENT CHARACTER}") else text

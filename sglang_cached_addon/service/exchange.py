"""What is short of a call, from upstream to the store.

`fetch` makes the one call to upstream for what is short, `land` reads its answer, and `store`
keeps it; what there is already, `lookup` finds. Free of mitmproxy, clocks and I/O: times and ids
are arguments. One object serves one upstream, on one thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Hashable, Iterable, Iterator, Mapping
from io import BytesIO
from types import MappingProxyType

import orjson

from sglang_cached_addon.core import neighbours, planning, policy
from sglang_cached_addon.core.cache import Addition, Brought, Sample, Store
from sglang_cached_addon.core.call import Mint, Split, without_skipped
from sglang_cached_addon.core.ignoring import Ignoring
from sglang_cached_addon.core.outcome import Counters, Kind, Outcome
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import PLAIN, Reason, Refused, Terms
from sglang_cached_addon.dialects import Registry
from sglang_cached_addon.service import landing, slices
from sglang_cached_addon.service.claims import Claim
from sglang_cached_addon.service.families import Families
from sglang_cached_addon.service.findings import Bypass, Fetch, Known, Landed
from sglang_cached_addon.service.lookup import Lookup
from sglang_cached_addon.service.relay import Relay
from sglang_cached_addon.service.sharing import Sharing

UNNAMED = "default"
"""What SGLang calls weights to which nobody has given a name."""


class Exchange:
    """The cache in front of one upstream."""

    def __init__(
        self, dialects: Registry, store: Store, mint: Mint, ignoring: Ignoring | None = None
    ) -> None:
        """`mint` gives ids that nobody else has; `ignoring` is as `Lookup` has it."""
        self.counters = Counters()
        self.lookup = Lookup(dialects, store, ignoring)
        self.families = Families(self.lookup, store)
        self.sharing = Sharing()
        self.mint = mint
        self._store = store

    def bypass(self, reason: Reason) -> Bypass:
        """Counts a request that is not looked up."""
        outcome = Outcome(Kind.BYPASS, reason=reason)
        self.counters.add(outcome)
        return Bypass(outcome)

    # Fetching

    def bring(
        self, plan: Plan, keys: Collection[bytes], *, claims: bool
    ) -> Awaitable[Brought] | None:
        """Asks a shared store for what is short of these pools, as `Store.bring`."""
        needs = {key: need for key, need in plan.needs.items() if key in keys}
        return self._store.bring(needs, claims=claims)

    def look(self, needs: Mapping[bytes, int]) -> Awaitable[Brought] | None:
        """What a shared store has more of pools, up to so many samples of each."""
        return self._store.bring(needs, claims=False)

    def fetch(
        self,
        known: Known,
        plan: Plan,
        terms: Terms = PLAIN,
        busy: Collection[bytes] = (),
        *,
        claim: Claim | None = None,
        others: Mapping[bytes, int] = MappingProxyType({}),
    ) -> Fetch:
        """The call that brings what is short, but for `busy` pools, which others fill. For a call
        of a run, with its `claim`, it also brings what `others` lack of its pools, if equal calls
        can be one."""
        pairs = zip(plan.keys, plan.shortfalls, strict=True)
        shortfalls = [0 if key in busy else short for key, short in pairs]
        dialect, server, stamp = known.dialect, self.lookup.server, self.lookup.stamp(known)
        if others:
            shared = self.sharing.shared(known, plan, shortfalls, others, self.mint, server)
            if shared:
                known, plan, sent, manner = shared
                body = orjson.dumps(sent.body)
                return Fetch(known, plan, sent, body, terms, stamp, claim, manner)
        sent = dialect.trim(known.call, shortfalls, self.mint, server)
        is_own = sent.body == known.call.body and not known.call.is_part
        own = None if is_own else orjson.dumps(sent.body)
        return Fetch(known, plan, sent, own, terms, stamp, claim)

    def learn(self, fetch: Fetch, landed: Landed) -> bool:
        """Whether upstream has not understood a call that several share, which is remembered: then
        they are to try in another manner."""
        name, server = fetch.known.dialect.name, self.lookup.server
        return self.sharing.learn(server, name, fetch.manner, landed)

    def land(
        self, fetch: Fetch, status: int, body: BytesIO, pause: slices.Pause = lambda: None
    ) -> Landed:
        """Reads what upstream answered, and empties it where it is not shown as it is. What is
        `slices.LARGE` belongs into a thread, and pauses now and then for others."""
        if reason := policy.store_refusal(status):
            return Landed(status, body.getvalue(), refusal=reason)
        call, sent = fetch.known.call, fetch.sent
        found: Split | Reason
        if call.stream:
            found, shown = Reason.UNREADABLE, body.getvalue()
        else:
            dialect, is_whole = fetch.known.dialect, fetch.is_whole
            found, shown = landing.take(dialect, call, sent, body, is_whole=is_whole, pause=pause)
        if isinstance(found, Split) and not fetch.is_whole:
            shown = b""  # it is put together with others
        shown = landing.with_client_rids(shown, sent.rids, pause)
        if isinstance(found, Reason):
            return Landed(200, shown, refusal=found)
        return Landed(200, shown, without_skipped(found, sent), self._refusal(fetch, found))

    def land_stream(self, fetch: Fetch, relay: Relay) -> Landed:
        """Reads a stream that is done."""
        try:
            split = without_skipped(relay.split(), fetch.sent)
        except Refused as refused:
            return Landed(200, refusal=refused.reason)
        return Landed(200, b"", split, self._refusal(fetch, split))

    def _refusal(self, fetch: Fetch, split: Split) -> Reason | None:
        """Why an answer is not stored, as far as the answer itself tells."""
        if split.refusal:
            return split.refusal
        if len(split.versions) > 1:
            return Reason.MIXED_WEIGHTS
        weights = self.lookup.server.weight_version
        if weights is not None and split.versions - {weights}:
            return Reason.OTHER_WEIGHTS
        if self.lookup.server.has_workers and weights not in (None, UNNAMED) and not split.versions:
            return Reason.UNCONFIRMED  # another worker may have other ones
        if fetch.terms.refusal:
            return fetch.terms.refusal
        size = sum(len(g.answer) + len(g.deltas) for g in split.generations)
        return None if self._store.has_room(size) else Reason.DISK

    def store(
        self, fetch: Fetch, samples: Iterable[tuple[int, Sample]]
    ) -> Iterator[tuple[Addition, Reason | None]]:
        """Stores what a fetch has brought, an addition at a time, in between which others may have
        their turn. With a reason why one is not stored it ends."""
        name, raw = fetch.known.dialect.name, fetch.known.raw
        if fetch.known.call.is_seeded and self.lookup.server.engine != neighbours.SGLANG:
            samples = self._in_free_places(fetch, samples)
        for one in planning.additions(fetch.plan, samples, name, raw, fetch.terms.since):
            if fetch.stamp.clears != self._store.cleared(fetch.known.keys):
                # Who clears the cache wants nothing back that was on its way then.
                yield one, Reason.CLEARED
                return
            if fetch.stamp.model_version != self.lookup.model_version:
                yield one, Reason.MODEL_CHANGED
                return
            is_kept = self._store.append(one)
            yield one, None if is_kept else Reason.DISK
            if not is_kept:
                return
        self.families.note(fetch.known)

    def room(self) -> Awaitable[None] | None:
        """As `Store.room`."""
        return self._store.room()

    def _in_free_places(
        self, fetch: Fetch, samples: Iterable[tuple[int, Sample]]
    ) -> list[tuple[int, Sample]]:
        """The samples whose places in their pools are free: with a seed, the sample of each place
        is a certain one, and others may have stored it meanwhile."""
        places = [len(pool) for pool in fetch.plan.stored]
        is_replaced = fetch.terms.replaces
        found = []
        for item, sample in samples:
            if is_replaced or places[item] >= len(self._store.get(fetch.plan.keys[item])):
                found.append((item, sample))
            places[item] += 1
        return found

    def likeness(self, known: Known) -> Hashable:
        """A value that is equal for calls that have the same stream, but for the usage at its end,
        and ids."""
        call = known.call
        counts = call.stream is not None and call.stream.continuous_usage
        parts = (known.keys, call.n, call.batched, counts, self.lookup.stamp(known))
        return (known.dialect.name, *parts)

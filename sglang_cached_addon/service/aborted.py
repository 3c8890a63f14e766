"""The answers to calls that were aborted: what was generated till then, and ends that say so.

Pure: times and ids are arguments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import orjson

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.lookup import events_of
from sglang_cached_addon.wire import sse


def answer(
    known: Known, plan: Plan, rid: str, now: float, new: Sequence[tuple[int, Sample]] = ()
) -> bytes:
    """The answer to a call that was aborted before its first token, or with so much of it: `new`
    are samples by their items, and the plan has what there was before."""
    if known.call.stream and not new:
        return b"".join(events(known, rid, now))
    samples: Sequence[Sequence[Sample]] = _none(known, rid, now)
    if new:
        before = plan.with_samples(new).stored
        samples = [[*some, *none[len(some) :]] for some, none in zip(before, samples, strict=True)]
    if known.call.stream:
        return b"".join(events_of(known, samples))
    answers = [[sample.answer for sample in pool] for pool in samples]
    return known.dialect.write(known.call, answers)


def events(
    known: Known,
    rid: str,
    now: float,
    states: Mapping[int, bytes] | None = None,
    ended: Collection[int] = (),
    *,
    has_begun: bool = False,
) -> list[bytes]:
    """The end of a stream that was aborted. `states` are the newest events of choices that each
    have all of it so far; choices that have `ended` are as they are. Where the stream `has_begun`,
    nobody knows how many tokens its events were, and no usage is told."""
    samples = _none(known, rid, now)
    script = known.dialect.script(known.call, samples)
    if script.finishes or not (states or ended):
        return events_of(known, samples, is_counted=not has_begun)
    found = []
    for choice, said in enumerate(script.deltas):
        if states and choice in states:
            value = orjson.loads(sse.data(states[choice]) or b"null")
            known.dialect.cut(value)
            found.append(sse.event(orjson.dumps(value)))
        elif choice not in ended:
            found += said
    return [*found, sse.DONE]


def _none(known: Known, rid: str, now: float) -> list[list[Sample]]:
    """Samples without a token."""
    aborted = known.dialect.aborted(known.call, rid, now)
    return [[Sample(aborted, now, 0.0, 0)] * known.call.n for _ in known.call.items]

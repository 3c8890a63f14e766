"""Which step a call takes next, given what is at hand and what others do."""

from __future__ import annotations

import asyncio
from typing import Any

from sglang_cached_addon.core import policy
from sglang_cached_addon.core.policy import Reason, Terms
from sglang_cached_addon.service import steps
from sglang_cached_addon.service.fetching import Means
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.flight import Flight
from sglang_cached_addon.service.pursuit import Pursuit
from sglang_cached_addon.service.stream import Stream
from sglang_cached_addon.service.stream_pursuit import StreamPursuit
from tests.service.stage import COMPLETIONS, GENERATE, STREAM, Stage, staged

ONE = {"text": "a", "sampling_params": {"n": 1}}
LIST = {"text": ["a", "b"], "sampling_params": {"n": 1}}
OFFLINE = Terms(refusal=Reason.OFFLINE, denial=Reason.OFFLINE)


def pursuit(
    stage: Stage, path: str, body: Any, terms: Terms = policy.PLAIN, **more: Any
) -> Pursuit:
    ask = stage.make(path, body, {}, **more)
    found = stage.exchange.lookup.find("POST", path, ask.body, terms)
    assert isinstance(found, Known)
    means: Means = stage.service.means
    make = StreamPursuit if found.call.stream else Pursuit
    return make(means, ask, found, terms, is_alone=False)


@staged()
async def test_steps(stage: Stage) -> None:
    """Of each state of things there is one next step."""
    flights = stage.service.flights
    one, both = pursuit(stage, GENERATE, ONE), pursuit(stage, GENERATE, LIST)
    stream = pursuit(stage, COMPLETIONS, STREAM)
    old = pursuit(stage, COMPLETIONS, STREAM, is_chunkable=False)
    assert isinstance(one.decide(), steps.Lead)
    assert isinstance(stream.decide(), steps.Lead)
    assert old.decide() == steps.PassOn(Reason.HTTP_1_0)
    assert pursuit(stage, GENERATE, ONE, OFFLINE).decide() == steps.LookFurther()
    # Others fetch what is short, or a part of it.
    others = Flight([one.known.keys[0]])
    flights.begin(others, alone=False)
    assert one.decide() == steps.Wait({one.known.keys[0]: 1}, (others,))
    lead = both.decide()
    assert isinstance(lead, steps.Lead)
    assert lead.fetch.keys == {both.known.keys[1]}
    one.is_alone = True
    assert isinstance(one.decide(), steps.Lead)
    flights.end(others)
    # A stream of another can be read along, unless the client cannot be given chunks.
    leader = Flight(stream.known.keys, stream.likeness, stream=Stream())
    flights.begin(leader, alone=False)
    assert stream.decide() == steps.Follow(leader)
    assert isinstance(old.decide(), steps.Wait)
    flights.end(leader)
    # An abort is waited for before anything is asked for.
    one.ask.abort = asyncio.get_running_loop().create_future()
    assert one.decide() == steps.Hold(one.ask.abort)

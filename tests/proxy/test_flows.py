"""What is known of requests under way, and of whose they are."""

from __future__ import annotations

import gc
import weakref
from contextlib import ExitStack

from mitmproxy.test import tflow

from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.proxy.flows import Flows
from sglang_cached_addon.service.asking import Streamed

MISS = Outcome(Kind.MISS)


def test_whose_they_are() -> None:
    """A flow is over once, at its end or when its client leaves; those of others go on."""
    flows = Flows()
    one, two, other = tflow.tflow(), tflow.tflow(), tflow.tflow()
    two.client_conn = one.client_conn
    live = [flows.begin(flow) for flow in (one, two, other)]
    assert [flows.get(flow) for flow in (one, two, other)] == live
    assert flows.end(one) is live[0]
    assert (flows.end(one), flows.get(one), len(flows)) == (None, None, 2)
    assert flows.left(one.client_conn) == {two: live[1]}
    assert flows.left(one.client_conn) == {}
    assert (flows.end(two), flows.get(other), len(flows)) == (None, live[2], 1)


def test_nothing_is_held() -> None:
    """A client that stays connected does not hold the streams that it had."""
    flows, flow = Flows(), tflow.tflow()
    streamed = Streamed((), None, MISS, lambda is_complete: MISS, ExitStack())  # type: ignore[arg-type]
    held = weakref.ref(streamed)
    flows.begin(flow).streamed = streamed
    flows.end(flow)
    del streamed
    gc.collect()
    assert held() is None

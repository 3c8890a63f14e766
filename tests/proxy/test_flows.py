"""What is known of requests under way, and of whose they are."""

from __future__ import annotations

from mitmproxy.test import tflow

from sglang_cached_addon.core.request_ids import Ids
from sglang_cached_addon.proxy.flows import Flows


def test_whose_they_are() -> None:
    """A flow is over once, at its end or when its client leaves; those of others go on."""
    flows = Flows(Ids("x"))
    one, two, other = tflow.tflow(), tflow.tflow(), tflow.tflow()
    two.client_conn = one.client_conn
    live = [flows.begin(flow) for flow in (one, two, other)]
    assert [flows.get(flow) for flow in (one, two, other)] == live
    assert flows.end(one) is live[0]
    assert (flows.end(one), flows.get(one), len(flows)) == (None, None, 2)
    assert flows.left(one.client_conn) == {two: live[1]}
    assert flows.left(one.client_conn) == {}
    assert (flows.end(two), flows.get(other), len(flows)) == (None, live[2], 1)

"""Requests that change what upstream does, where no cache is open."""

from __future__ import annotations

import asyncio
import json

from mitmproxy.test import tflow, tutils

from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.proxy import control
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.flows import Live


def test_without_a_cache() -> None:
    """They go upstream as they came: what becomes of calls is tested end to end."""
    body = json.dumps({"rid": "a"}).encode()
    request = tutils.treq(method=b"POST", path=b"/abort_request", content=body)
    flow, live = tflow.tflow(req=request), Live(0.0, b"r1")
    asyncio.run(control.abort(Desk(), flow, live))
    assert flow.request.content == body
    assert control.change(Desk(), live, Change.MODEL, None) is None
    assert (live.aborted, live.update) == (None, None)

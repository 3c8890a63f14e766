"""Flows that ask for the proxy's own routes."""

from __future__ import annotations

import asyncio

from mitmproxy.test import tflow, tutils

from sglang_cached_addon.admin import routes
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.own_routes import serve
from tests.tables import each


@each(("path", "status"), [("/health", 200), ("/health?x=1", 200), ("/cache/stats", 500)])
def test_serve(path: str, status: int) -> None:
    """A flow gets what its route answers, whatever its query."""
    flow = tflow.tflow(req=tutils.treq(method=b"GET", path=path.encode()))
    route = routes.find(path)
    assert route
    asyncio.run(serve(Desk(), flow, route, "localhost"))
    assert flow.response
    assert flow.response.status_code == status
    assert flow.response.headers["Content-Type"] == "application/json"

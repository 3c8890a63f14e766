"""Answers flows that ask for one of the proxy's own routes: from mitmproxy's request to
`admin/routes.py`, and back."""

from __future__ import annotations

from mitmproxy import http

from sglang_cached_addon.admin import routes
from sglang_cached_addon.admin.request import Request
from sglang_cached_addon.proxy import responses
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.requests import caller


async def serve(desk: Desk, flow: http.HTTPFlow, route: routes.Route, host: str) -> None:
    """Answers a request that was sent to that host."""
    request = flow.request
    path, _, query = request.path.partition("?")
    token = desk.settings.admin_token if desk.settings else ""
    asked = Request(request.method, path, query, request.raw_content or b"")
    reply = await routes.answer(route, asked, caller(flow, host), token, desk.reports)
    flow.response = responses.json(reply.status, reply.body, reply.headers)

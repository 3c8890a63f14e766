"""What mitmproxy's layers ask about clients and flows, beside mitmproxy's own hooks.

The layers are `Gateway` and `FramingLayer`. Knows the flows under way, and decides nothing of them.
"""

from __future__ import annotations

from math import inf
from weakref import WeakKeyDictionary, WeakSet

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.context import Context

from sglang_cached_addon.admin import routes
from sglang_cached_addon.core import directives, policy, runs
from sglang_cached_addon.core.call_head import by_name
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.proxy import responses
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.feed import Feed
from sglang_cached_addon.proxy.flows import Flows, noted
from sglang_cached_addon.proxy.inside import handler_of
from sglang_cached_addon.proxy.requests import ABORTS
from sglang_cached_addon.service.error_bodies import unreachable
from sglang_cached_addon.wire import heads


class Front:
    """Answers the layers."""

    def __init__(self, desk: Desk, flows: Flows) -> None:
        self._desk = desk
        self._flows = flows
        self.clients: WeakSet[Client] = WeakSet()
        """The clients behind a `Gateway`, which alone can be answered piece by piece."""
        self.hosts: WeakKeyDictionary[http.Request, str] = WeakKeyDictionary()
        """The hosts that requests to our own routes were sent to."""

    def is_chunkable(self, flow: http.HTTPFlow) -> bool:
        """Whether a flow can be answered piece by piece: HTTP/1.0 knows no chunks."""
        return flow.client_conn in self.clients and flow.request.http_version == "HTTP/1.1"

    def note_host(self, request: http.Request) -> None:
        """A request is as the client sent it: mitmproxy is about to put upstream's name into it."""
        if routes.find(runs.split(request.path)[1]):
            self.hosts[request] = request.headers.get("host", "")

    def longest(self, head: heads.RequestHead) -> float:
        """How many bytes a request's body may have: any number, if it can be passed on."""
        _, path = runs.split(head.target)
        if routes.find(path) or path in ABORTS:
            return policy.MAX_NAMES
        if self._desk.is_offline or directives.parse(by_name(head.fields)).only_if_cached:
            return policy.MAX_BODY
        return inf

    def pass_on(self, flow: http.HTTPFlow) -> None:
        """A request whose body is too large to be kept is about to be passed on as it comes."""
        live = self._flows.get(flow)
        if live and self._desk.parts and live.outcome is None:
            live.outcome = self._desk.parts.exchange.bypass(Reason.TOO_LARGE).outcome

    def open_feed(self, flow: http.HTTPFlow, context: Context) -> Feed | None:
        """What answers a flow in upstream's place, if something does."""
        live = self._flows.get(flow)
        handler = handler_of(flow.client_conn)
        return Feed(context, live.feed, handler) if live and live.feed and handler else None

    def make_error(self, flow: http.HTTPFlow, message: str) -> http.Response:
        """The answer to a request that upstream did not answer, with mitmproxy's message."""
        text = unreachable(self._desk.upstream_url, message)
        return responses.json(502, text, noted(flow))

"""What the cache does with mitmproxy's flows: hooks in, answers out.

The way of calls that the fast lane does not take, and of all where other addons look on. Decides
nothing: `service` does. Of a flow it keeps in `metadata` what people may want to see, and what is
alive in a weak map beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_specs import ReverseMode

from sglang_cached_addon import dialects
from sglang_cached_addon.admin import routes
from sglang_cached_addon.core import directives, policy, updates
from sglang_cached_addon.core.call_head import CallHeads, by_name
from sglang_cached_addon.core.outcome import Outcome
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.proxy import answering, control, responses
from sglang_cached_addon.proxy.connections import Connections
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.feed import Feed
from sglang_cached_addon.proxy.flows import Live, Streaming
from sglang_cached_addon.proxy.requests import (
    ABORTS,
    caller,
    is_abort,
    is_local,
    is_short,
    length,
)
from sglang_cached_addon.proxy.writing import LEFT, paced
from sglang_cached_addon.service.asking import Answer, Ask, Streamed
from sglang_cached_addon.service.findings import Bypass, Hit, unreachable
from sglang_cached_addon.wire import heads, http1

# In a flow's metadata: the header fields of its outcome.
_HEADERS = "sglang_cached"


class FlowHooks:
    """Answers flows. An addon of mitmproxy's, and the `Front` of its HTTP layer."""

    name = "sglang_cached_flows"

    def __init__(self, desk: Desk, connections: Connections, streaming: Streaming) -> None:
        self._desk = desk
        self._dialects = dialects.installed()
        self._connections = connections
        self._streaming = streaming
        self._live: WeakKeyDictionary[http.HTTPFlow, Live] = WeakKeyDictionary()
        self._flows: dict[Client, set[http.HTTPFlow]] = {}
        """Those under way, by the client that sent them."""
        self._hosts: WeakKeyDictionary[http.Request, str] = WeakKeyDictionary()
        """What requests to our own routes were sent to."""

    def __len__(self) -> int:
        """How many flows are not answered in full."""
        return len(self._live)

    # Hooks

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        connection = self._connections.get(flow.client_conn)
        # Of this flow alone, whoever answers it.
        handed = connection.take_handed() if connection else None
        if flow.response or flow.error or not isinstance(flow.client_conn.proxy_mode, ReverseMode):
            return None
        live = self._live[flow] = Live(time.monotonic())
        self._flows.setdefault(flow.client_conn, set()).add(flow)
        if connection:
            connection.calls += 1
        if routes.find(flow.request.path):
            return None
        if handed:
            live.ask, live.outcome = handed.ask, handed.bypass.outcome
            return None
        reason = self._unread(flow.request)
        if not reason or self._is_denied(flow.request, reason):
            return None
        if parts := self._desk.parts:
            live.outcome = parts.exchange.bypass(reason).outcome
        change = updates.change(flow.request.method, flow.request.path)
        if change is Change.ADAPTER and is_short(flow.request):
            return None  # its body names the adapter
        # Passed on as it comes, whatever its size.
        flow.request.stream = not is_abort(flow.request)
        return control.change(self._desk, live, change, None) if change else None

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        live = self._live.get(flow)
        if live is None or flow.response or flow.error or not flow.live:
            return None
        if live.update:
            live.update.sent()
            return None
        if route := routes.find(flow.request.path):
            return self._serve_own(flow, route)
        if (reason := self._unread(flow.request)) and self._is_denied(flow.request, reason):
            flow.response = responses.denied(flow.request.path)
            return None
        if is_abort(flow.request):
            return control.abort(self._desk, flow, live)
        if self._desk.parts and live.outcome is None:
            live.ask = self._ask(flow, self._desk.parts.heads)
            return self._carry_out(flow, live, self._desk.receive(live.ask))
        change = updates.change(flow.request.method, flow.request.path)
        if change:
            name = updates.adapter_name(flow.request.get_content(strict=False) or b"")
            return control.change(self._desk, live, change, name, is_whole=True)
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        live = self._live.get(flow)
        if flow.response and self._streaming.is_fed(flow):
            flow.response.stream = True
            return
        if live is None or flow.response is None or flow.server_conn.timestamp_start is None:
            return  # not ours, or not from upstream
        status = flow.response.status_code
        if parts := self._desk.parts:
            parts.upstream.seen(True)
            if live.ask:
                parts.service.heard(live.ask, status)
        responses.lead_here(flow.response, self._desk.upstream_url)
        flow.response.stream = flow.response.stream or True
        if live.outcome and live.outcome.reason is not Reason.ROUTE:
            live.outcome = replace(live.outcome, status=status)
            _show(flow, live.outcome)
            fields = answering.mark(flow.response.headers.fields, live.outcome)
            flow.response.headers = http.Headers(fields)

    def response(self, flow: http.HTTPFlow) -> None:
        if flow.response:
            self._end(flow, flow.response.status_code)

    def error(self, flow: http.HTTPFlow) -> None:
        live = self._end(flow, None)
        if live and live.outcome and live.outcome.reason is not Reason.ROUTE:
            _show(flow, live.outcome)

    def _end(self, flow: http.HTTPFlow, status: int | None) -> Live | None:
        """A flow is over; `status` is that of its whole answer."""
        live = self._live.pop(flow, None)
        self._streaming.forget(flow)
        flows = self._flows.get(flow.client_conn)
        if flows:
            flows.discard(flow)
        if live is None:
            return None
        if connection := self._connections.get(flow.client_conn):
            connection.calls -= 1
        if live.update:
            has_reached = flow.server_conn.timestamp_tcp_setup is not None
            live.update.ended(status, has_reached=has_reached)
        if live.aborted:
            live.aborted(status == 200)
        if live.streamed:
            live.streamed.close()
            live.outcome = live.streamed.outcome
        if live.outcome:
            self._desk.log(flow.request.path, live.outcome, live.started)
        return live

    def left(self, client: Client) -> None:
        """A client is gone. While one of our hooks waits for it, mitmproxy says nothing more of its
        flow."""
        for flow in self._flows.pop(client, ()):
            self._end(flow, None)

    # What the hooks do

    def _ask(self, flow: http.HTTPFlow, call_heads: CallHeads) -> Ask:
        request = flow.request
        head = call_heads.read(request.method, request.path, by_name(request.headers.fields))
        return Ask(
            head,
            request.raw_content or b"",
            request.headers.fields,
            is_chunkable=self._streaming.can_answer(flow),
            is_local=is_local(flow.client_conn),
        )

    def _is_denied(self, request: http.Request, reason: Reason) -> bool:
        """Whether a request that is not even read must not go upstream."""
        if self._desk.is_offline:
            return True
        headers = by_name(request.headers.fields)
        return reason is not Reason.ROUTE and directives.parse(headers).only_if_cached

    def _unread(self, request: http.Request) -> Reason | None:
        """Why a request's body is not read at all."""
        if (request.method, request.path) not in self._dialects:
            has_query = (request.method, request.path.split("?", 1)[0]) in self._dialects
            return Reason.QUERY if has_query else Reason.ROUTE
        return Reason.TOO_LARGE if length(request) > policy.MAX_BODY else None

    def _carry_out(
        self, flow: http.HTTPFlow, live: Live, answer: Answer | Coroutine[Any, Any, Answer]
    ) -> Awaitable[None] | None:
        if isinstance(answer, Coroutine):
            return self._wait(flow, live, answer)
        self._give(flow, live, answer)
        return None

    async def _wait(
        self, flow: http.HTTPFlow, live: Live, way: Coroutine[Any, Any, Answer]
    ) -> None:
        try:
            with self._streaming.waiting(flow.client_conn):
                answer = await way
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task:
                task.uncancel()
            # The client has left; without an answer mitmproxy would ask upstream.
            flow.response = responses.json(499, b"")
            live.outcome = LEFT
            self._end(flow, None)
        else:
            self._give(flow, live, answer)

    def _give(self, flow: http.HTTPFlow, live: Live, answer: Answer) -> None:
        """Answers a flow, or lets it pass."""
        live.outcome = answer.outcome
        if isinstance(answer, Bypass):
            return
        _show(flow, answer.outcome)
        upstream = self._desk.upstream_url
        if isinstance(answer, Streamed):
            live.streamed = answer
            self._streaming.give(
                flow, responses.head(answer, upstream), answer.pieces, answer.close
            )
        elif not isinstance(answer, Hit):
            flow.response = responses.whole(answer, answer.body, upstream)
        else:
            flow.is_replay = "response"
            self._replay(flow, answer)

    def _replay(self, flow: http.HTTPFlow, hit: Hit) -> None:
        upstream = self._desk.upstream_url
        if not hit.is_stream:
            flow.response = responses.whole(hit, hit.body, upstream)
            return
        events = http1.unchunked(hit.body)
        if self._streaming.can_answer(flow):
            pieces = paced(events, hit.seconds(self._desk.replay_rate))
            self._streaming.give(
                flow, responses.head(hit, upstream), pieces, lambda is_complete: None
            )
        else:
            flow.response = responses.whole(hit, b"".join(events), upstream)

    # As `gateway.Front`

    def make_error(self, flow: http.HTTPFlow, message: str) -> http.Response:
        """What a client gets when upstream gives nothing."""
        response = responses.json(502, unreachable(self._desk.upstream_url, message))
        for name, value in flow.metadata.get(_HEADERS, {}).items():
            response.headers[name] = value
        return response

    def note_host(self, request: http.Request) -> None:
        """As `gateway.Front`."""
        if routes.find(request.path):
            self._hosts[request] = request.headers.get("host", "")

    def pass_on(self, flow: http.HTTPFlow) -> None:
        """As `gateway.Front`."""
        live = self._live.get(flow)
        if live and self._desk.parts and live.outcome is None:
            live.outcome = self._desk.parts.exchange.bypass(Reason.TOO_LARGE).outcome

    def longest(self, head: heads.RequestHead) -> float:
        """Bytes that a request's body may have: as many as there are, if it can be passed on."""
        if routes.find(head.target) or head.target in ABORTS:
            return policy.MAX_NAMES
        if self._desk.is_offline or directives.parse(by_name(head.fields)).only_if_cached:
            return policy.MAX_BODY
        return inf

    def open_feed(self, flow: http.HTTPFlow, context: Context) -> Feed | None:
        """As `gateway.Front`."""
        return self._streaming.open_feed(flow, context)

    async def _serve_own(self, flow: http.HTTPFlow, route: routes.Route) -> None:
        request = flow.request
        _, _, query = request.path.partition("?")
        token = self._desk.settings.admin_token if self._desk.settings else ""
        asking = caller(flow, self._hosts.get(request, ""))
        reports = self._desk.reports
        reply = await routes.answer(route, request.method, query, asking, token, reports)
        flow.response = responses.json(reply.status, reply.body, reply.headers)


def _show(flow: http.HTTPFlow, outcome: Outcome) -> None:
    """Notes an outcome where mitmweb shows it."""
    flow.comment = f"cache: {outcome.cache_status.partition('; ')[2]}"
    flow.metadata[_HEADERS] = dict(outcome.headers())

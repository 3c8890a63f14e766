"""What the cache does with mitmproxy's flows: hooks in, answers out.

The way of calls that the fast lane does not take, and of all where other addons look on. Decides
nothing: `service` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.mode_specs import ReverseMode

from sglang_cached_addon.admin import routes
from sglang_cached_addon.core import directives, updates
from sglang_cached_addon.core.call_head import by_name
from sglang_cached_addon.core.log_line import Ended
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.proxy import answering, control, kept, own_routes, responses
from sglang_cached_addon.proxy.connections import Connections
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.feed import FeedAnswer
from sglang_cached_addon.proxy.flows import Flows, Live, note, note_fetches
from sglang_cached_addon.proxy.front import Front
from sglang_cached_addon.proxy.onlookers import Onlookers
from sglang_cached_addon.proxy.requests import (
    ask_of,
    is_abort,
    is_short,
    length,
    unread,
)
from sglang_cached_addon.proxy.writing import LEFT, pieces_of
from sglang_cached_addon.service.asking import Answer, Streamed
from sglang_cached_addon.service.findings import Bypass, Hit
from sglang_cached_addon.wire import http1


class FlowHooks:
    """An addon of mitmproxy's that answers flows."""

    name = "sglang_cached_flows"

    def __init__(self, desk: Desk, connections: Connections, onlookers: Onlookers) -> None:
        self.flows = Flows(desk.ids)
        """The flows that are not answered in full."""
        self.front = Front(desk, self.flows)
        self._desk = desk
        self._connections = connections
        self._onlookers = onlookers

    # Hooks

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        connection = self._connections.get(flow.client_conn)
        # Of this flow alone, whoever answers it.
        handed = connection.take_handed() if connection else None
        if flow.response or flow.error or not isinstance(flow.client_conn.proxy_mode, ReverseMode):
            return None
        live = self.flows.begin(flow)
        if connection:
            connection.calls += 1
            connection.delivery.look()
        if flow.response or routes.find(flow.request.path):
            return None
        if handed:
            live.ask, live.outcome = handed.ask, handed.bypass.outcome
            live.id, live.run = handed.ask.id, handed.ask.head.run
            return None
        reason = unread(flow.request, self._desk.dialects)
        if not reason or self._is_denied(flow.request, reason):
            return None
        if parts := self._desk.parts:
            live.outcome = parts.exchange.bypass(reason).outcome
            if updates.ends_calls(flow.request.path):
                live.passed = parts.service.aborts.passing()
        change = updates.change(flow.request.method, flow.request.path)
        if change is Change.ADAPTER and is_short(flow.request):
            return None  # its body names the adapter
        # Passed on as it comes, whatever its size.
        if not is_abort(flow.request):
            kept.pass_on(flow.request, is_seen=self._onlookers.is_there)
        return control.change(self._desk, live, change, None) if change else None

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        live = self.flows.get(flow)
        if live is None or flow.response or flow.error or not flow.live:
            return None
        if live.update:
            live.update.sent()
            return None
        if route := routes.find(flow.request.path):
            host = self.front.hosts.get(flow.request, "")
            return own_routes.serve(self._desk, flow, route, host)
        reason = unread(flow.request, self._desk.dialects)
        if reason and self._is_denied(flow.request, reason):
            self._deny(flow, live, reason)
            return None
        if is_abort(flow.request):
            return control.abort(self._desk, flow, live)
        if self._desk.parts and live.outcome is None:
            live.ask = ask_of(flow, self._desk.parts.heads, live.run, live.id)
            live.run = live.ask.head.run
            live.ask.is_chunkable = self.front.is_chunkable(flow)
            live.ask.on_fetch = partial(note_fetches, flow, live.ask, self._onlookers)
            answer = self._desk.receive(live.ask)
            if isinstance(answer, Coroutine):
                return self._wait(flow, live, answer)
            self._give(flow, live, answer)
            return None
        change = updates.change(flow.request.method, flow.request.path)
        if change:
            name = updates.adapter_name(flow.request.get_content(strict=False) or b"")
            return control.change(self._desk, live, change, name, is_whole=True)
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        live = self.flows.get(flow)
        if live is None or flow.response is None:
            return
        if live.feed is None and flow.server_conn.timestamp_start is None:
            return  # not from upstream
        kept.pass_on(flow.response, is_seen=self._onlookers.is_there)
        if live.feed:
            return
        status = flow.response.status_code
        if parts := self._desk.parts:
            parts.upstream.seen(True)
            if live.ask:
                parts.service.heard(live.ask, status)
        fields = answering.lead_here(flow.response.headers.fields, self._desk.upstream_url)
        if live.outcome and live.outcome.reason is not Reason.ROUTE:
            live.outcome = replace(live.outcome, status=status)
            note(flow, live)
            fields = answering.mark(fields, live.outcome, live.id)
        flow.response.headers = http.Headers(fields)

    def response(self, flow: http.HTTPFlow) -> None:
        if flow.response:
            self._end(flow, flow.response.status_code)

    def error(self, flow: http.HTTPFlow) -> None:
        kept.broke_off(flow.response)
        self._end(flow, None)

    def left(self, client: Client) -> None:
        """A client is gone. While one of our hooks waits for it, mitmproxy says nothing more of its
        flow."""
        for flow, live in self.flows.left(client).items():
            if live.waiting:
                live.waiting.cancel()
                live.outcome = LEFT
            self._close(flow, live, None)

    # What the hooks do

    def _end(self, flow: http.HTTPFlow, status: int | None) -> Live | None:
        """Ends a flow; `status` is that of its whole answer, None where there is none."""
        if live := self.flows.end(flow):
            self._close(flow, live, status)
        return live

    def _close(self, flow: http.HTTPFlow, live: Live, status: int | None) -> None:
        """Tells all that have to do with a flow that it is over."""
        if connection := self._connections.get(flow.client_conn):
            connection.calls -= 1
            if live.ask:
                connection.delivery.wrote(live.ask, is_whole=status is not None)
        if live.update:
            has_reached = flow.server_conn.timestamp_tcp_setup is not None
            live.update.ended(status, has_reached=has_reached)
        if live.passed:
            live.passed()
        if live.aborted:
            live.aborted(status == 200)
        if live.streamed:
            live.streamed.close()
            live.outcome = live.streamed.outcome
        if live.outcome:
            note(flow, live)
            size = live.size or (length(flow.response) if status and flow.response else None)
            seconds, path = time.monotonic() - live.started, flow.request.path
            self._desk.log(Ended(path, live.outcome, seconds, live.id, live.run, status, size))

    def _is_denied(self, request: http.Request, reason: Reason) -> bool:
        """Whether a request that is not even read must not go upstream."""
        if self._desk.is_offline:
            return True
        headers = by_name(request.headers.fields)
        return reason is not Reason.ROUTE and directives.parse(headers).only_if_cached

    def _deny(self, flow: http.HTTPFlow, live: Live, reason: Reason) -> None:
        """Answers in place of upstream, which is not to be asked."""
        flow.response = responses.denied(flow.request.path)
        why = Reason.OFFLINE if self._desk.is_offline else Reason.ONLY_IF_CACHED
        live.outcome = Outcome(Kind.DENIED, reason=why, status=504)
        if self._desk.parts and reason is not Reason.ROUTE:  # it is a call for samples
            self._desk.parts.exchange.counters.add(live.outcome)

    async def _wait(
        self, flow: http.HTTPFlow, live: Live, coming: Coroutine[Any, Any, Answer]
    ) -> None:
        live.waiting = task = asyncio.current_task()
        try:
            answer = await coming
        except asyncio.CancelledError:
            if task:
                task.uncancel()
            # The client has left; without an answer mitmproxy would ask upstream.
            flow.response = responses.json(499, b"")
            live.outcome = LEFT
            self._end(flow, None)
        else:
            self._give(flow, live, answer)
        finally:
            live.waiting = None

    def _give(self, flow: http.HTTPFlow, live: Live, answer: Answer) -> None:
        """Answers a flow, or lets it pass."""
        live.outcome = answer.outcome
        if isinstance(answer, Bypass):
            return
        note(flow, live)
        if isinstance(answer, Streamed):
            live.streamed = answer
        elif isinstance(answer, Hit):
            flow.is_replay = "response"
        upstream = self._desk.upstream_url
        pieces = pieces_of(answer, self._desk.replay_rate)
        if pieces and live.ask and live.ask.is_chunkable:
            ended = live.streamed.close if live.streamed else bool
            shown = responses.answered(answer, upstream, live.id)
            live.feed = FeedAnswer(shown, pieces, partial(live.gave, self._desk.begun), ended)
        else:
            assert not isinstance(answer, Streamed)
            body = b"".join(http1.unchunked(answer.body)) if pieces else answer.body
            flow.response = responses.answered(answer, upstream, live.id, body)

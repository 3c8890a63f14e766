"""The mitmproxy addon: options, hooks, and how flows become values and back.

`sglang-cached start` loads it, and so does `mitmdump -s`. It reads no JSON, opens no file
and decides nothing: `exchange`, `routes` and `store` do. Of mitmproxy's flow it keeps in
`metadata` what people may want to see, and what is alive in a weak map beside it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from math import inf
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import orjson
from mitmproxy import addonmanager, ctx, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.disable_h2c import DisableH2C
from mitmproxy.connection import Client
from mitmproxy.net.http.http1 import assemble_response
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import HookCompleted
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.proxy.server import ConnectionHandler

from sglang_cached_addon import dialects
from sglang_cached_addon.admin import access, routes
from sglang_cached_addon.admin.reports import Reports
from sglang_cached_addon.assembly import Parts, Target, assemble
from sglang_cached_addon.core import directives, policy, printable, updates
from sglang_cached_addon.core.outcome import Kind, Outcome, hit_status
from sglang_cached_addon.core.policy import Mode, Reason
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.proxy import gateway, inside, lane
from sglang_cached_addon.proxy.connections import Connections
from sglang_cached_addon.proxy.feed import Feed
from sglang_cached_addon.proxy.flows import Live, Streaming
from sglang_cached_addon.proxy.gateway import Run
from sglang_cached_addon.proxy.passage import open_passage
from sglang_cached_addon.service import Service
from sglang_cached_addon.service.asking import Answer, Ask, Reply
from sglang_cached_addon.service.exchange import Bypass, Exchange, Hit, Request, error_body
from sglang_cached_addon.service.fetching import unreachable
from sglang_cached_addon.settings import OPTIONS, Settings
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.upstream import State, Update, Upstream
from sglang_cached_addon.wire import descriptors, heads, http1, location
from sglang_cached_addon.wire.tls import tls_context

logger = logging.getLogger("sglang_cached_addon")

# Hooks of flows, which the fast lane does without.
_FLOW_HOOKS = ("requestheaders", "request", "responseheaders", "response")

LEAVING, LEAVING_SECONDS = 8, 1.0
"""How many clients are hung up at once where descriptors run short, and how long nobody must have
waited for them."""

_LEFT = Outcome(Kind.MISS, reason=Reason.CUT)
"""Of who did not wait for the answer."""

# In a flow's metadata: the header fields of its outcome.
_HEADERS = "sglang_cached"


class SglangCached:
    """Answers what is stored, and stores what upstream answers."""

    name = "sglang_cached"

    def __init__(self, *, announce: bool = True) -> None:
        """`announce`: log one line about upstream and cache when both are there."""
        self._announce = announce
        self.settings: Settings | None = None
        self.upstream: Upstream | None = None
        self.parts: Parts | None = None
        """The cache, while it is open."""
        self.failure: str | None = None
        """Why there is no cache, once that is known."""
        self.lost = 0
        """Samples that could not be written before the end."""
        self._dialects = dialects.installed()
        self._heads = http1.HeadReader(self._dialects)
        """Read with the settings' `key_headers`, once there are any."""
        self._said_closed = False
        self._hooks: dict[str, Callable[[http.HTTPFlow], Awaitable[None] | None]] = {
            "requestheaders": self.requestheaders,
            "request": self.request,
            "responseheaders": self.responseheaders,
            "response": self.response,
            "error": self.error,
        }
        self._exchange: Exchange | None = None
        self._service: Service | None = None
        self._live: WeakKeyDictionary[http.HTTPFlow, Live] = WeakKeyDictionary()
        self._flows: dict[Client, set[http.HTTPFlow]] = {}
        """Those under way, by the client that sent them."""
        self.connections = Connections()
        """Of the clients that are there."""
        self._streaming = Streaming(_handler_of)
        self._hosts: WeakKeyDictionary[http.Request, str] = WeakKeyDictionary()
        """What requests to our own routes were sent to."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Of hooks that wait."""

    # Set-up

    def load(self, loader: Loader) -> None:
        for option in OPTIONS:
            loader.add_option(option.name, option.type, option.default, option.option_help)
        if proxyserver := _proxyserver():
            proxyserver.servers.changed.connect(self._servers_changed)

    def configure(self, updated: set[str]) -> None:
        if not updated & {option.name for option in OPTIONS}:
            return
        try:
            settings = Settings.parse(
                {option.name: getattr(ctx.options, option.name) for option in OPTIONS}
            )
        except ValueError as e:
            raise exceptions.OptionsError(str(e)) from e
        if self.parts and self.settings and settings.cache_path != self.settings.cache_path:
            raise exceptions.OptionsError(
                "sglang_cache_path: cannot change while the cache is open"
            )
        if self.parts and self.settings and settings.store != self.settings.store:
            raise exceptions.OptionsError("sglang_store: cannot change while the cache is open")
        self.settings = settings
        if self._is_time_to_open():  # a script is loaded late
            self.running()

    async def _servers_changed(self) -> None:
        if self._is_time_to_open():
            self.running()
            await self.look()

    def _is_time_to_open(self) -> bool:
        """Whether mitmproxy is about to listen: who came before the store is open could not be
        answered. It has a hook for when it does listen only."""
        proxyserver = _proxyserver()
        return bool(proxyserver) and any(not server.is_running for server in proxyserver.servers)

    def running(self) -> None:
        if self.parts or self.failure:
            return
        try:
            self.open()
        except (ValueError, StoreError) as e:
            self.failure = str(e)
            logger.error("sglang-cached: %s", e)
            return
        if self._announce and self.parts:
            loaded = self.parts.store.loaded
            logger.info(
                "sglang-cached: %s, %d entries (%d samples) from %s",
                self.parts.upstream.url,
                loaded.keys,
                loaded.samples,
                self.parts.place,
            )

    def open(self) -> None:
        """Opens the store; raises ValueError or `StoreError`. Who comes before that cannot be
        answered."""
        assert self.settings
        url = _upstream_url()
        tls = _tls() if url.startswith("https:") else None
        target = Target(url, tls, ctx.options.keep_host_header)
        self.parts = parts = assemble(self.settings, target)
        self.upstream, self._exchange, self._service = (
            parts.upstream,
            parts.exchange,
            parts.service,
        )
        self._heads = http1.HeadReader(
            self._dialects, self.settings.key_headers, self.settings.credential_headers
        )
        descriptors.make_room = partial(self.connections.hang_up, LEAVING, LEAVING_SECONDS)
        # What was loaded stays: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        for part, fault in inside.faults().items():
            logger.warning(
                "sglang-cached: off, as this mitmproxy is not as expected: %s (%s)",
                part.value,
                fault,
            )
        # With `eager`, every client would open an upstream connection before its first request.
        ctx.options.update(connection_strategy="lazy")

    async def look(self) -> State:
        """Asks upstream who it is, but waits no longer than a call would."""
        return await self.upstream.check() if self.upstream else State.UNKNOWN

    def done(self) -> None:
        parts, self.parts, self._exchange, self._service = self.parts, None, None, None
        if parts:
            self.lost = parts.close()

    # Hooks

    def client_connected(self, client: Client) -> None:
        handler = _handler_of(client)
        if not handler or not isinstance(client.proxy_mode, ReverseMode):
            return
        connection = self.connections.add(handler)
        if not connection or not self._is_alone():
            return
        is_local, is_limited = _is_local(client), bool(ctx.options.body_size_limit)

        def fill(head: http1.Head, raw: bytes, body: bytes) -> lane.Way | None:
            # Of limits, mitmproxy knows.
            return None if is_limited else self._fill(head, raw, body, is_local=is_local)

        lane.open_lane(connection, self._heads, self._answer, fill)

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        if not inside.has(inside.Part.LAYERS):
            return
        connection = self.connections.get(nextlayer.context.client)
        ours = gateway.reverse_proxy(
            nextlayer.context,
            nextlayer.data_client()[:1],
            self,
            in_place=self._is_alone(),
            passage=(lambda context: open_passage(context, connection, self._longest))
            if connection
            else None,
        )
        if ours:
            nextlayer.layer = ours
            self._streaming.enable(nextlayer.context.client)

    def client_disconnected(self, client: Client) -> None:
        self.connections.remove(client)
        self._streaming.left(client)
        for flow in self._flows.pop(client, ()):
            # Of a client that leaves while one of our hooks waits, mitmproxy says nothing more.
            self._end(flow, None)

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if flow.response or flow.error or not isinstance(flow.client_conn.proxy_mode, ReverseMode):
            return None
        live = self._live[flow] = Live(time.monotonic())
        self._flows.setdefault(flow.client_conn, set()).add(flow)
        if routes.find(flow.request.path):
            return None
        reason = self._unread(flow.request)
        if not reason or self._is_denied(flow.request, reason):
            return None
        if self._exchange:
            live.outcome = self._exchange.bypass(reason).outcome
        change = updates.change(flow.request.method, flow.request.path)
        if change is Change.ADAPTER and _is_short(flow.request):
            return None  # its body names the adapter
        # Passed on as it comes, whatever its size.
        flow.request.stream = not _is_abort(flow.request)
        return self._change(live, change, None) if change else None

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
            flow.response = _json_response(504, _denial(flow.request))
            return None
        if _is_abort(flow.request):
            return self._translate_abort(flow, live)
        if self._service and live.outcome is None:
            live.ask = _ask(flow, self._streaming.can_answer(flow))
            return self._carry_out(flow, live, self._service.receive(live.ask))
        change = updates.change(flow.request.method, flow.request.path)
        if change:
            name = updates.adapter_name(flow.request.get_content(strict=False) or b"")
            return self._change(live, change, name, is_whole=True)
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        live = self._live.get(flow)
        if flow.response and self._streaming.is_fed(flow):
            flow.response.stream = True
            return
        if live is None or flow.response is None or flow.server_conn.timestamp_start is None:
            return  # not ours, or not from upstream
        status = flow.response.status_code
        if self.upstream:
            self.upstream.seen(True)
            if live.ask:
                shown = (*live.ask.credential_headers, *live.ask.routing_headers)
                self.upstream.heard(live.ask.asker, shown, status, time.monotonic())
        self._lead_here(flow.response)
        flow.response.stream = flow.response.stream or True
        if live.outcome and live.outcome.reason is not Reason.ROUTE:
            live.outcome = replace(live.outcome, status=status)
            _mark(flow, flow.response, live.outcome)

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
        if live.update:
            has_reached = flow.server_conn.timestamp_tcp_setup is not None
            live.update.ended(status, has_reached=has_reached)
        if live.aborted:
            live.aborted(status == 200)
        if live.streamed:
            live.streamed.close()
            live.outcome = live.streamed.outcome
        if live.outcome:
            self._log(flow.request.path, live.outcome, live.started)
        return live

    async def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        await descriptors.for_upstream()

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        if self.upstream:
            self.upstream.seen(False)

    def _is_denied(self, request: http.Request, reason: Reason) -> bool:
        """Whether a request that is not even read must not go upstream."""
        if self.settings is not None and self.settings.mode is Mode.OFFLINE:
            return True
        headers = _by_name(request.headers.fields)
        return reason is not Reason.ROUTE and directives.parse(headers).only_if_cached

    # The fast lane

    def _is_alone(self) -> bool:
        """Whether nobody else wants to see requests; says so once when somebody does."""
        if not (self._exchange and self.settings and self.settings.express):
            return False
        others = _onlookers(self)
        if others and not self._said_closed:
            self._said_closed = True
            names = ", ".join(others[:3]) + (", ..." if others[3:] else "")
            logger.info("sglang-cached: fast lane off, so that other addons see hits (%s)", names)
        return not others

    def run_hook(self, hook: StartHook) -> Run:
        """Runs a flow's hook at once, where nobody else listens.

        mitmproxy's way is a task for each hook, which costs more than all that we do in it.
        """
        run = self._hooks.get(hook.name)
        if run is None:
            return Run.FOREIGN
        (flow,) = hook.args()
        if run == self.request:
            request = flow.request
            # The first two are for `DisableH2C`, the others wait.
            if request.method == "PRI" or "upgrade" in request.headers:
                return Run.FOREIGN
            if routes.find(request.path) or _is_abort(request):
                return Run.FOREIGN
        try:
            waits = run(flow)
        except Exception:  # as mitmproxy does: the flow goes on without us
            logger.exception("sglang-cached: error in %s", hook.name)
            return Run.DONE
        if waits is None:
            return Run.DONE
        task = asyncio.ensure_future(self._finish_hook(hook, flow, waits))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Run.PENDING

    async def _finish_hook(
        self, hook: StartHook, flow: http.HTTPFlow, waits: Awaitable[object]
    ) -> None:
        try:
            await waits
        except Exception:
            logger.exception("sglang-cached: error in %s", hook.name)
        if handler := _handler_of(flow.client_conn):
            await handler.server_event(HookCompleted(hook))

    def _answer(self, head: http1.Head, body: bytes) -> bytes | None:
        """A full hit as bytes of HTTP, or None."""
        if self._service is None or self.settings is None:
            return None
        started = time.monotonic()
        # Paced replays wait, which the lane does not.
        streams = not self.settings.replay_tokens_per_second
        hit = self._service.look_up(
            head.method, head.path, body, head.credential, head.routing, streams=streams
        )
        if hit is None:
            return None
        outcome = hit.outcome
        self._log(head.path, outcome, started)
        status = hit_status(outcome.key)
        return http1.hit(hit.body, outcome.age, status, is_stream=hit.is_stream)

    def _fill(
        self, head: http1.Head, raw: bytes, body: bytes, *, is_local: bool
    ) -> lane.Way | None:
        """The way to what is not all stored; None if it has to go through the hooks."""
        if self._service is None:
            return None
        fields = heads.parse(raw).fields
        request = Request(head.method, head.path, _by_name(fields), body)
        is_local = is_local and not access.is_relayed(request.headers)
        way = self._service.fill(Ask(request, fields, is_local=is_local))
        return self._filled(head, way) if way else None

    async def _filled(self, head: http1.Head, way: Coroutine[Any, Any, Answer]) -> bytes | None:
        started = time.monotonic()
        try:
            answer = await way
        except asyncio.CancelledError:
            self._log(head.path, _LEFT, started)
            raise
        if isinstance(answer, Hit):
            response = _json_response(200, answer.body)
        elif isinstance(answer, Reply):
            response = self._passed_on(answer)
        else:  # things have changed meanwhile
            return None
        _say(response, answer.outcome)
        self._log(head.path, answer.outcome, started)
        data: bytes = assemble_response(response)
        return data

    # What the hooks do

    def _unread(self, request: http.Request) -> Reason | None:
        """Why a request's body is not read at all."""
        if (request.method, request.path) not in self._dialects:
            has_query = (request.method, request.path.split("?", 1)[0]) in self._dialects
            return Reason.QUERY if has_query else Reason.ROUTE
        return Reason.TOO_LARGE if _length(request) > policy.MAX_BODY else None

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
            flow.response = _json_response(499, b"")
            live.outcome = _LEFT
            self._end(flow, None)
        else:
            self._give(flow, live, answer)

    def _give(self, flow: http.HTTPFlow, live: Live, answer: Answer) -> None:
        """Answers a flow, or lets it pass."""
        live.outcome = answer.outcome
        if isinstance(answer, Bypass):
            return
        if isinstance(answer, Hit):
            self._replay(flow, answer)
        elif isinstance(answer, Reply):
            flow.response = self._passed_on(answer)
            _mark(flow, flow.response, answer.outcome)
        else:
            live.streamed = answer
            head = _stream_response(answer.headers)
            _mark(flow, head, answer.outcome)
            self._streaming.give(flow, head, answer)

    def _replay(self, flow: http.HTTPFlow, hit: Hit) -> None:
        assert self.settings
        flow.is_replay = "response"
        if not hit.is_stream:
            flow.response = _json_response(200, hit.body)
            _mark(flow, flow.response, hit.outcome)
        elif self._streaming.can_answer(flow):
            head = _stream_response()
            _mark(flow, head, hit.outcome)
            self._streaming.replay(flow, head, hit, self.settings.replay_tokens_per_second)
        else:
            body = b"".join(http1.unchunked(hit.body))
            flow.response = http.Response.make(200, body, {"Content-Type": http1.EVENT_STREAM})
            _mark(flow, flow.response, hit.outcome)

    def _change(
        self, live: Live, change: Change, adapter: str | None, *, is_whole: bool = False
    ) -> Awaitable[None] | None:
        """A request that may change the model is to be passed on; `is_whole`: all of it is here."""
        if self.upstream is None:
            return None
        live.update = self.upstream.change(change, adapter)
        return self._await_word(live.update, is_whole=is_whole)

    async def _await_word(self, update: Update, *, is_whole: bool) -> None:
        await update.announced
        if is_whole:
            update.sent()

    def _passed_on(self, reply: Reply) -> http.Response:
        """Upstream's answer, as its clients get it."""
        response = _response(reply.status, reply.headers, reply.body)
        self._lead_here(response)
        return response

    def _lead_here(self, response: http.Response) -> None:
        """What leads to upstream leads through the proxy."""
        for name in location.FIELDS:
            if self.upstream and (value := response.headers.get(name)):
                response.headers[name] = location.through_proxy(value, self.upstream.url)

    def make_error(self, flow: http.HTTPFlow, message: str) -> http.Response:
        """What a client gets when upstream gives nothing."""
        url = self.upstream.url if self.upstream else "the upstream"
        response = _json_response(502, unreachable(url, message))
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
        if live and self._exchange and live.outcome is None:
            live.outcome = self._exchange.bypass(Reason.TOO_LARGE).outcome

    def _longest(self, head: heads.RequestHead) -> float:
        """Bytes that a request's body may have: as many as there are, if it can be passed on."""
        if routes.find(head.target) or head.target in _ABORTS:
            return policy.MAX_NAMES
        is_offline = self.settings is not None and self.settings.mode is Mode.OFFLINE
        if is_offline or directives.parse(_by_name(head.fields)).only_if_cached:
            return policy.MAX_BODY
        return inf

    def open_feed(self, flow: http.HTTPFlow, context: Context) -> Feed | None:
        """As `gateway.Front`."""
        return self._streaming.open_feed(flow, context)

    async def _serve_own(self, flow: http.HTTPFlow, route: routes.Route) -> None:
        request = flow.request
        _, _, query = request.path.partition("?")
        token = self.settings.admin_token if self.settings else ""
        caller = _caller(flow, self._hosts.get(request, ""))
        reply = await routes.answer(route, request.method, query, caller, token, self.reports)
        flow.response = _json_response(reply.status, reply.body, reply.headers)

    async def _translate_abort(self, flow: http.HTTPFlow, live: Live) -> None:
        """Sends an abort on under the ids that upstream knows. Calls that share a fetch are ended
        here, when upstream has agreed."""
        service, upstream = self._service, self.upstream
        message = _object(flow.request.get_content(strict=False) or b"")
        if not (service and upstream):
            return
        rid = message.get("rid")
        is_pause = flow.request.path == _PAUSE
        if message.get("mode", "abort") == "abort" if is_pause else message.get("abort_all"):
            live.aborted = service.aborts.aborting(None)
        elif is_pause:
            return
        elif isinstance(rid, str) and service.aborts.is_known(rid):
            live.aborted = service.aborts.aborting(rid)
            # One that upstream does not know means nothing to it.
            first, *others = service.aborts.targets(rid) or [uuid.uuid4().hex]
            shown = [
                (name, value)
                for name, value in _request(flow.request).headers.items()
                if name in (b"authorization", b"content-type")
            ]
            for other in others:
                body = orjson.dumps({**message, "rid": other})
                await upstream.post("/abort_request", body, shown)
            flow.request.content = orjson.dumps({**message, "rid": first})

    def _log(self, target: str, outcome: Outcome, started: float) -> None:
        if self.settings and not self.settings.quiet:
            logger.info("%s", outcome.line(printable.path(target), time.monotonic() - started))

    @property
    def active(self) -> int:
        """Requests that have come and are not answered, and answers on their way to the store, or
        to others."""
        unfinished = self.parts.unfinished if self.parts else 0
        return len(self._live) + self.connections.busy + unfinished

    @property
    def reports(self) -> Reports:
        """What can be told of the proxy now."""
        return Reports(self.parts, self.settings, self.failure, time.monotonic())


def _proxyserver() -> Any:
    """mitmproxy's addon that listens, if there is one."""
    return ctx.master.addons.get("proxyserver")


def _handler_of(client: Client) -> ConnectionHandler | None:
    """What serves a client's connection."""
    found: ConnectionHandler | None = _proxyserver().connections.get(client.id)
    return found


def _upstream_url() -> str:
    """The one upstream that mitmproxy is set up for; raises ValueError."""
    modes = [ProxyMode.parse(mode) for mode in ctx.options.mode]
    if len(modes) != 1 or not isinstance(modes[0], ReverseMode):
        raise ValueError("needs exactly one upstream: --mode reverse:http://HOST:PORT")
    host, port = modes[0].address[:2]
    return f"{modes[0].scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _tls() -> ssl.SSLContext:
    """How upstream is spoken to, as mitmproxy's options say; raises ValueError."""
    certificate = ctx.options.client_certs
    if certificate and Path(certificate).expanduser().is_dir():
        raise ValueError("client_certs: must name a file, as there is one upstream")
    try:
        return tls_context(
            insecure=ctx.options.ssl_insecure,
            authorities=ctx.options.ssl_verify_upstream_trusted_ca,
            certificate=str(Path(certificate).expanduser()) if certificate else None,
        )
    except OSError as e:
        raise ValueError(f"TLS to the upstream cannot be set up: {e}") from e


def _onlookers(own: object) -> list[str]:
    """The names of other addons that want to see requests, or what is answered."""
    return [
        getattr(addon, "name", type(addon).__name__.lower())
        for addon in addonmanager.traverse(ctx.master.addons.chain)
        if addon is not own
        and not isinstance(addon, DisableH2C)
        and any(hasattr(addon, hook) for hook in _FLOW_HOOKS)
    ]


_PAUSE = "/pause_generation"
_ABORTS = ("/abort_request", _PAUSE)


def _is_abort(request: http.Request) -> bool:
    """Whether it may end calls under way."""
    return request.path in _ABORTS and request.method == "POST"


def _is_short(request: http.Request) -> bool:
    """Whether a body is known beforehand to be one that can be kept."""
    return "transfer-encoding" not in request.headers and _length(request) <= policy.MAX_NAMES


def _length(request: http.Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdigit() and len(length) < 20 else 0


def _caller(flow: http.HTTPFlow, host: str) -> access.Caller:
    """Who asks for one of our own routes, as sent to that host."""
    headers = flow.request.headers
    return access.Caller(
        _is_from_here(flow),
        host,
        headers.get("origin"),
        headers.get("sec-fetch-site"),
        headers.get("authorization"),
    )


def _by_name(fields: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in fields:
        name = name.lower()
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _request(request: http.Request) -> Request:
    body = request.raw_content or b""
    return Request(request.method, request.path, _by_name(request.headers.fields), body)


def _ask(flow: http.HTTPFlow, is_chunkable: bool) -> Ask:
    request = flow.request
    is_local = _is_from_here(flow)
    return Ask(_request(request), request.headers.fields, is_chunkable, is_local)


def _is_from_here(flow: http.HTTPFlow) -> bool:
    names = _by_name(flow.request.headers.fields)
    return _is_local(flow.client_conn) and not access.is_relayed(names)


def _is_local(client: Client) -> bool:
    address = ip_address(client.peername[0].split("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _denial(request: http.Request) -> bytes:
    why = "--mode offline, or only-if-cached"
    text = f"sglang-cached: {request.path} would have to go upstream, and must not ({why})"
    return error_body(504, "GatewayTimeout", text)


def _response(status: int, fields: Iterable[tuple[bytes, bytes]], body: bytes) -> http.Response:
    """A whole answer, with upstream's header fields."""
    response = http.Response.make(status, body)
    length = response.headers.pop("content-length")
    response.headers = http.Headers(fields)
    response.headers["content-length"] = length
    return response


def _json_response(
    status: int, body: bytes, headers: dict[str, str] | None = None
) -> http.Response:
    return http.Response.make(status, body, {"Content-Type": "application/json", **(headers or {})})


def _stream_response(fields: Iterable[tuple[bytes, bytes]] = ()) -> http.Response:
    """The head of a streamed answer, with upstream's header fields."""
    headers = http.Headers(fields)
    headers.pop("content-length", None)
    headers.setdefault("Content-Type", http1.EVENT_STREAM)
    headers["Transfer-Encoding"] = "chunked"
    response = http.Response.make(200, b"")
    response.headers = headers
    return response


def _mark(flow: http.HTTPFlow, response: http.Response, outcome: Outcome) -> None:
    """Shows an outcome in the answer's head, and to people in mitmweb."""
    _show(flow, outcome)
    _say(response, outcome)


def _say(response: http.Response, outcome: Outcome) -> None:
    """Shows an outcome in the answer's head."""
    for name, value in outcome.headers():
        # RFC 9211 §2: a list, the cache nearest to the origin first.
        known = response.headers.get(name) if name == "Cache-Status" else None
        response.headers[name] = f"{known}, {value}" if known else value


def _show(flow: http.HTTPFlow, outcome: Outcome) -> None:
    """Notes an outcome where mitmweb shows it."""
    flow.comment = f"cache: {outcome.cache_status.partition('; ')[2]}"
    flow.metadata[_HEADERS] = dict(outcome.headers())


addons = [SglangCached()]

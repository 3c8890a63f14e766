"""The mitmproxy addon: options, hooks, and how flows become values and back.

`sglang-cached start` loads it, and so does `mitmdump -s`. It reads no JSON, opens no file
and decides nothing: `exchange`, `routes` and `store` do. Of mitmproxy's flow it keeps in
`metadata` what people may want to see, and what is alive in a weak map beside it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import orjson
from mitmproxy import addonmanager, ctx, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.disable_h2c import DisableH2C
from mitmproxy.connection import Client
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import HookCompleted
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.proxy.server import ConnectionHandler

from sglang_cached_addon import __version__, dialects, express, gateway, policy, routes, wire
from sglang_cached_addon.exchange import (
    Bypass,
    Exchange,
    Fetch,
    Follow,
    Hit,
    Live,
    Request,
    error_body,
)
from sglang_cached_addon.feed import Feed
from sglang_cached_addon.gateway import Run
from sglang_cached_addon.outcome import Outcome
from sglang_cached_addon.policy import Reason
from sglang_cached_addon.settings import OPTIONS, Settings
from sglang_cached_addon.store import DiskStore, StoreError
from sglang_cached_addon.streaming import Streaming
from sglang_cached_addon.upstream import State, Upstream

logger = logging.getLogger("sglang_cached_addon")

# Hooks of flows, which the fast lane does without.
_FLOW_HOOKS = ("requestheaders", "request", "responseheaders", "response")

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
        self.store: DiskStore | None = None
        self.failure: str | None = None
        """Why there is no cache, once that is known."""
        self._dialects = dialects.installed()
        self._heads = wire.HeadReader(self._dialects)
        self._broken = express.self_check()
        self._said_closed = False
        self._hooks: dict[str, Callable[[http.HTTPFlow], Awaitable[None] | None]] = {
            "requestheaders": self.requestheaders,
            "request": self.request,
            "responseheaders": self.responseheaders,
            "response": self.response,
            "error": self.error,
        }
        self._exchange: Exchange | None = None
        self._live: WeakKeyDictionary[http.HTTPFlow, Live] = WeakKeyDictionary()
        self._lanes: dict[Client, express.Lane] = {}
        """Of the clients that are there."""
        self._streaming = Streaming(_handler_of)
        self._tasks: set[asyncio.Task[None]] = set()
        """Of hooks that wait."""

    # Set-up

    def load(self, loader: Loader) -> None:
        for option in OPTIONS:
            loader.add_option(option.name, option.type, option.default, option.help)

    def configure(self, updated: set[str]) -> None:
        if not updated & {option.name for option in OPTIONS}:
            return
        try:
            settings = Settings.parse(
                {option.name: getattr(ctx.options, option.name) for option in OPTIONS}
            )
        except ValueError as e:
            raise exceptions.OptionsError(str(e)) from e
        if self.store and self.settings and settings.cache_path != self.settings.cache_path:
            raise exceptions.OptionsError(
                "sglang_cache_path: cannot change while the cache is open"
            )
        self.settings = settings

    def running(self) -> None:
        if self.store:
            return
        assert self.settings
        try:
            self.upstream = Upstream(_upstream_url(), insecure=ctx.options.ssl_insecure)
            self.store = DiskStore(self.settings.cache_path)
        except (ValueError, StoreError) as e:
            self.failure = str(e)
            logger.error("sglang-cached: %s", e)
            return
        # What was loaded stays: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        self._exchange = Exchange(self._dialects, self.store, lambda: uuid.uuid4().hex)
        if self._broken:
            logger.warning(
                "sglang-cached: fast lane off, this mitmproxy is not as it should be: %s",
                self._broken,
            )
        # With `eager`, every client would open an upstream connection before its first request.
        ctx.options.update(connection_strategy="lazy")
        loaded = self.store.loaded
        if not self._announce:
            return
        logger.info(
            "sglang-cached: %s, %d entries (%d samples) from %s",
            self.upstream.url,
            loaded.keys,
            loaded.samples,
            self.store.journal.path,
        )

    def done(self) -> None:
        store, self.store, self._exchange = self.store, None, None
        if store:
            store.close()

    # Hooks

    def client_connected(self, client: Client) -> None:
        if self._broken or not isinstance(client.proxy_mode, ReverseMode) or not self._is_alone():
            return
        handler = _handler_of(client)
        if handler and (lane := express.open_lane(handler, self._heads, self._answer)):
            self._lanes[client] = lane

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        if nextlayer.layer is None:
            lane = self._lanes.get(nextlayer.context.client)
            nextlayer.layer = gateway.reverse_proxy(
                nextlayer.context,
                nextlayer.data_client()[:1],
                self,
                in_place=self._is_alone(),
                lane=(lambda context: express.Passage(context, lane)) if lane else None,
            )
            if nextlayer.layer:
                self._streaming.enable(nextlayer.context.client)

    def client_disconnected(self, client: Client) -> Awaitable[None] | None:
        self._lanes.pop(client, None)
        return self._streaming.left(client)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.response or flow.error or not isinstance(flow.client_conn.proxy_mode, ReverseMode):
            return
        live = self._live[flow] = Live(time.monotonic())
        if routes.find(flow.request.path):
            return
        reason = self._unread(flow.request)
        if reason:
            # Passed on as it comes, whatever its size.
            flow.request.stream = not _is_abort(flow.request)
            if self._exchange:
                live.outcome = self._exchange.bypass(reason).outcome

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        live = self._live.get(flow)
        if live is None or flow.response or flow.error or not flow.live:
            return None
        if route := routes.find(flow.request.path):
            return self._serve_own(flow, route)
        if _is_abort(flow.request):
            return self._translate_abort(flow)
        if self._exchange and live.outcome is None:
            return self._carry_out(flow, live, self._receive(flow))
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        live = self._live.get(flow)
        if flow.response and self._streaming.is_fed(flow):
            flow.response.stream = True
            return
        if live is None or flow.response is None or flow.server_conn.timestamp_start is None:
            return  # not ours, or not from upstream
        if self.upstream:
            self.upstream.seen(True, time.monotonic())
        status = flow.response.status_code
        if live.fetch and self._exchange:
            if status != 200:
                live.outcome = self._exchange.fail(live.fetch, Reason.STATUS, status).outcome
                live.fetch = None
            elif not self._open(flow, live, live.fetch):
                return  # buffered, for `response` to read
        flow.response.stream = flow.response.stream or True
        if live.outcome and live.outcome.reason is not Reason.ROUTE:
            live.outcome = replace(live.outcome, status=status)
            _mark(flow, flow.response, live.outcome)

    def response(self, flow: http.HTTPFlow) -> None:
        live = self._live.pop(flow, None)
        self._streaming.forget(flow)
        if live is None or flow.response is None:
            return
        if live.fetch and self._exchange:
            if flow.response.stream:
                ended = self._exchange.fail(live.fetch, Reason.CUT, 200, ended=True)
                live.outcome = ended.outcome
            else:
                live.outcome = self._complete(flow, live.fetch, flow.response, live.started)
        self._log(flow, live)

    def error(self, flow: http.HTTPFlow) -> None:
        live = self._live.pop(flow, None)
        self._streaming.forget(flow)
        if live is None:
            return
        if live.fetch and self._exchange:
            was_sent = flow.server_conn.timestamp_tcp_setup is not None
            reason = Reason.CUT if was_sent else Reason.UNREACHABLE
            live.outcome = self._exchange.fail(live.fetch, reason, 502).outcome
        if live.outcome and live.outcome.reason is not Reason.ROUTE:
            _show(flow, live.outcome)
        self._log(flow, live)

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        if self.upstream:
            self.upstream.seen(False, time.monotonic())

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

    def _answer(self, head: wire.Head, body: bytes) -> bytes | None:
        """A full hit as bytes of HTTP, or None."""
        if self._exchange is None or self.settings is None:
            return None
        started = time.monotonic()
        # Paced replays wait, which the lane does not.
        streams = not self.settings.replay_rate
        now = time.time()
        hit = self._exchange.lookup(head.method, head.path, body, now, streams=streams)
        if hit is None:
            return None
        if not self.settings.quiet:
            logger.info("%s", hit.outcome.line(head.path, time.monotonic() - started))
        return wire.hit(hit.body, hit.outcome.age, is_stream=hit.is_stream)

    # What the hooks do

    def _unread(self, request: http.Request) -> Reason | None:
        """Why a request's body is not read at all."""
        if (request.method, request.path) not in self._dialects:
            has_query = (request.method, request.path.split("?", 1)[0]) in self._dialects
            return Reason.QUERY if has_query else Reason.ROUTE
        length = request.headers.get("content-length", "0")
        return Reason.TOO_LARGE if length.isdigit() and int(length) > policy.MAX_BODY else None

    def _receive(self, flow: http.HTTPFlow) -> Hit | Follow | Fetch | Bypass:
        assert self._exchange
        may_follow = self._streaming.can_answer(flow)
        return self._exchange.receive(_request(flow.request), time.time(), may_follow=may_follow)

    def _carry_out(
        self, flow: http.HTTPFlow, live: Live, decision: Hit | Follow | Fetch | Bypass
    ) -> Awaitable[None] | None:
        if isinstance(decision, Hit):
            self._replay(flow, live, decision)
        elif isinstance(decision, Bypass):
            live.outcome = decision.outcome
        elif isinstance(decision, Follow):
            return self._follow(flow, live, decision)
        else:
            live.fetch = decision
            if decision.lead:
                self._streaming.lead(flow, decision.lead)
                # A compressed stream could not be read as it passes.
                flow.request.headers["accept-encoding"] = "identity"
            if decision.body is not None:
                flow.request.raw_content = decision.body
                flow.request.headers["content-length"] = str(len(decision.body))
                flow.request.headers.pop("transfer-encoding", None)
        return None

    def _replay(self, flow: http.HTTPFlow, live: Live, hit: Hit) -> None:
        assert self.settings
        live.outcome = hit.outcome
        flow.is_replay = "response"
        if not hit.is_stream:
            flow.response = _json_response(200, hit.body)
            _mark(flow, flow.response, hit.outcome)
        elif self._streaming.can_answer(flow):
            head = _stream_response()
            _mark(flow, head, hit.outcome)
            self._streaming.replay(flow, head, hit, self.settings.replay_rate)
        else:
            body = b"".join(wire.unchunked(hit.body))
            flow.response = http.Response.make(200, body, {"Content-Type": wire.EVENT_STREAM})
            _mark(flow, flow.response, hit.outcome)

    async def _follow(self, flow: http.HTTPFlow, live: Live, follow: Follow) -> None:
        """Reads along with another's fetch, or does as if there had been none."""
        while not await self._streaming.opened(flow, follow):
            if not flow.client_conn.connected or self._exchange is None:
                return
            decision = self._receive(flow)
            if not isinstance(decision, Follow):
                self._carry_out(flow, live, decision)
                return
            follow = decision
        assert self._exchange
        live.outcome = follow.outcome
        head = _stream_response()
        _mark(flow, head, follow.outcome)
        self._streaming.follow(flow, head, follow, self._exchange)

    def _open(self, flow: http.HTTPFlow, live: Live, fetch: Fetch) -> bool:
        """Upstream answers what was asked for: whether it is passed on as it comes."""
        assert flow.response and self._exchange
        if fetch.lead is None:
            return False
        content_type = flow.response.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type == "text/event-stream" and "content-encoding" not in flow.response.headers:
            live.outcome = self._exchange.open(fetch)
            flow.response.stream = self._streaming.tee(self._exchange, fetch, live)
            return True
        if fetch.is_partial:
            return False  # it cannot be a part of the answer
        live.outcome = self._exchange.fail(fetch, Reason.UNREADABLE, 200).outcome
        live.fetch = None
        return True

    def _complete(
        self, flow: http.HTTPFlow, fetch: Fetch, response: http.Response, started: float
    ) -> Outcome:
        assert self._exchange
        seconds = time.monotonic() - started
        body = response.get_content(strict=False) or b""
        completed = self._exchange.complete(fetch, 200, body, now=time.time(), seconds=seconds)
        if completed.status != 200:
            flow.response = response = _json_response(completed.status, completed.body or b"")
        elif completed.body is not None:
            response.headers.pop("content-encoding", None)
            response.headers.pop("transfer-encoding", None)
            response.raw_content = completed.body
            response.headers["content-length"] = str(len(completed.body))
        _mark(flow, response, completed.outcome)
        return completed.outcome

    def make_error(self, flow: http.HTTPFlow, message: str) -> http.Response:
        """What a client gets when upstream gives nothing."""
        url = self.upstream.url if self.upstream else "the upstream"
        text = (
            f"sglang-cached cannot get an answer from {url}: {message}. "
            "Check that the server runs, and that --sglang-url names it; "
            "stored answers are served meanwhile."
        )
        response = _json_response(502, error_body(502, "BadGateway", text))
        for name, value in flow.metadata.get(_HEADERS, {}).items():
            response.headers[name] = value
        return response

    def open_feed(self, flow: http.HTTPFlow, context: Context) -> Feed | None:
        """As `gateway.Front`."""
        return self._streaming.open_feed(flow, context)

    def outlives(self, flow: http.HTTPFlow) -> bool:
        """As `gateway.Front`."""
        return self._streaming.outlives(flow)

    async def _serve_own(self, flow: http.HTTPFlow, route: routes.Route) -> None:
        reply = await routes.answer(route, flow.request.method, _is_local(flow), self)
        flow.response = _json_response(reply.status, reply.body, reply.headers)

    async def _translate_abort(self, flow: http.HTTPFlow) -> None:
        """Sends an abort on under the ids that upstream knows."""
        if not (self._exchange and self.upstream):
            return
        body = flow.request.get_content(strict=False) or b""
        targets = self._exchange.abort_targets(body)
        if not targets:
            return
        first, *others = targets
        message = orjson.loads(body)
        names = ("authorization", "content-type")
        headers = {
            name: flow.request.headers[name] for name in names if name in flow.request.headers
        }
        for other in others:
            await self.upstream.post(
                "/abort_request", orjson.dumps({**message, "rid": other}), headers
            )
        flow.request.content = orjson.dumps({**message, "rid": first})

    def _log(self, flow: http.HTTPFlow, live: Live) -> None:
        if live.outcome and self.settings and not self.settings.quiet:
            seconds = time.monotonic() - live.started
            logger.info("%s", live.outcome.line(flow.request.path, seconds))

    @property
    def active(self) -> int:
        """Requests that are being served."""
        return len(self._live)

    # What the routes see

    def stats(self) -> dict[str, Any]:
        store, exchange = self._opened()
        return {
            "num_keys": len(store.memory),
            "total_responses": store.memory.samples,
            "cache_file": str(store.journal.path),
            "pending_writes": store.journal.pending,
            "streams_in_flight": len(exchange.streams),
            "followers": exchange.streams.followers,
            **exchange.counters.as_json(),
        }

    def info(self) -> dict[str, Any]:
        store, _ = self._opened()
        assert self.settings and self.upstream
        return {
            **self.stats(),
            "cache_dir": str(self.settings.cache_path),
            "version": __version__,
            "upstream": self.upstream.url,
            "settings": {
                "cache_path": str(self.settings.cache_path),
                "quiet": self.settings.quiet,
                "express": self.settings.express,
                "replay_tokens_per_second": self.settings.replay_rate,
            },
            "dialects": {
                dialect.name: store.memory.by_dialect[dialect.name]
                for dialect in self._dialects.values()
            },
            "memory_bytes": store.memory.bytes,
            "file_bytes": _size(store.journal.path),
            "loaded": {
                "keys": store.loaded.keys,
                "samples": store.loaded.samples,
                "skipped_lines": store.loaded.skipped,
                "torn_bytes": store.loaded.torn,
            },
        }

    async def health(self) -> dict[str, Any]:
        if self.upstream is None:
            return {"status": "ok", "upstream": {"url": None, "state": State.UNKNOWN}}
        state = await self.upstream.check(time.monotonic())
        return {"status": "ok", "upstream": {"url": self.upstream.url, "state": state}}

    async def clear(self) -> dict[str, Any]:
        store, _ = self._opened()
        keys, samples = len(store.memory), store.memory.samples
        try:
            await asyncio.wrap_future(store.clear())
        except StoreError as e:
            raise OSError(str(e)) from e
        return {"status": "success", "cleared_keys": keys, "cleared_responses": samples}

    def _opened(self) -> tuple[DiskStore, Exchange]:
        if self.store is None or self._exchange is None:
            raise OSError(self.failure or "the cache is not open")
        return self.store, self._exchange


def _handler_of(client: Client) -> ConnectionHandler | None:
    """What serves a client's connection."""
    found: ConnectionHandler | None = ctx.master.addons.get("proxyserver").connections.get(
        client.id
    )
    return found


def _upstream_url() -> str:
    """The one upstream that mitmproxy is set up for; raises ValueError."""
    modes = [ProxyMode.parse(mode) for mode in ctx.options.mode]
    if len(modes) != 1 or not isinstance(modes[0], ReverseMode):
        raise ValueError("needs exactly one upstream: --mode reverse:http://HOST:PORT")
    host, port = modes[0].address[:2]
    return f"{modes[0].scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _onlookers(own: object) -> list[str]:
    """The names of other addons that want to see requests, or what is answered."""
    return [
        getattr(addon, "name", type(addon).__name__.lower())
        for addon in addonmanager.traverse(ctx.master.addons.chain)
        if addon is not own
        and not isinstance(addon, DisableH2C)
        and any(hasattr(addon, hook) for hook in _FLOW_HOOKS)
    ]


def _is_abort(request: http.Request) -> bool:
    return request.path == "/abort_request" and request.method == "POST"


def _is_local(flow: http.HTTPFlow) -> bool:
    address = ip_address(flow.client_conn.peername[0].split("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _request(request: http.Request) -> Request:
    headers: dict[bytes, bytes] = {}
    for name, value in request.headers.fields:
        name = name.lower()
        headers[name] = headers[name] + b", " + value if name in headers else value
    return Request(request.method, request.path, headers, request.raw_content or b"")


def _json_response(
    status: int, body: bytes, headers: dict[str, str] | None = None
) -> http.Response:
    return http.Response.make(status, body, {"Content-Type": "application/json", **(headers or {})})


def _stream_response() -> http.Response:
    """The head of a streamed answer."""
    headers = {"Content-Type": wire.EVENT_STREAM, "Transfer-Encoding": "chunked"}
    response = http.Response.make(200, b"", headers)
    response.headers.pop("content-length", None)
    return response


def _mark(flow: http.HTTPFlow, response: http.Response, outcome: Outcome) -> None:
    """Shows an outcome in the answer's head, and to people in mitmweb."""
    for name, value in _show(flow, outcome).items():
        # RFC 9211 §2: a list, the cache nearest to the origin first.
        known = response.headers.get(name) if name == "Cache-Status" else None
        response.headers[name] = f"{known}, {value}" if known else value


def _show(flow: http.HTTPFlow, outcome: Outcome) -> dict[str, str]:
    """Notes an outcome where mitmweb shows it; gives the header fields that say the same."""
    fields = dict(outcome.headers())
    flow.comment = f"cache: {outcome.cache_status.partition('; ')[2]}"
    flow.metadata[_HEADERS] = fields
    return fields


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


addons = [SglangCached()]

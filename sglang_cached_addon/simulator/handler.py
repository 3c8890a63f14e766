"""HTTP without the routes: recording, credentials, and answers as SGLang frames them."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Container, Mapping
from typing import Any

import orjson
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

from sglang_cached_addon.simulator.engine import Engine
from sglang_cached_addon.simulator.jobs import Job, Left
from sglang_cached_addon.simulator.profile import INFO_ROUTES, Json, Received
from sglang_cached_addon.simulator.reading import document
from sglang_cached_addon.simulator.refusals import Refusal, crash

JSON = "application/json"
_OPEN = ("/health", "/ready", "/metrics")  # paths that need no key begin like this


class Recorder(RequestHandler):
    """Records each request; the headers are the simulator's."""

    engine: Engine
    is_probe = False
    """It is the smallest call of its API, which only asks whether its sender may generate."""

    def set_default_headers(self) -> None:
        self.clear_header("Content-Type")
        self.set_header("Server", "sglang-simulator")
        self.set_header("Vary", "Origin")

    def prepare(self) -> None:
        request = self.request
        headers = {name.lower(): value for name, value in request.headers.get_all()}
        path = request.uri or request.path
        self.is_probe = is_probe(request.body)
        seen = self.engine.probes if self.is_probe else self.engine.received
        seen.append(Received(request.method or "", path, headers, request.body))


class Handler(Recorder):
    """All HTTP routes: credentials, then the route, then its method."""

    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "OPTIONS")
    job: Job | None = None  # the samples asked for
    _rest: asyncio.Future[None] | None = None

    def initialize(self, engine: Engine, routes: Routes, admin: Container[str]) -> None:
        self.engine = engine
        self.routes = routes
        self.admin = admin  # the paths that want the admin key

    def compute_etag(self) -> str | None:
        return None

    def on_connection_close(self) -> None:
        if self.job is not None:
            self.job.leave()
        if self._rest is not None and not self._rest.done():
            self._rest.set_exception(Left())

    async def rest(self, seconds: float | None) -> None:
        """Wait so long, or (None) as long as generation is paused. Raises Left."""
        loop, resting = asyncio.get_running_loop(), self.engine.resting
        end = None if seconds is None else loop.time() + seconds
        while self.engine.paused if end is None else loop.time() < end:
            rest = self._rest = loop.create_future()
            resting.add(rest)
            timer = None if end is None else loop.call_at(end, _wake, rest)
            try:
                await rest
            finally:
                resting.discard(rest)
                if timer is not None:
                    timer.cancel()

    async def serve(self) -> None:
        path, method = self.request.path, self.request.method or ""
        if not self._permitted():
            self.unauthorized()
        elif self.is_probe:
            self.reply([])
        elif path in INFO_ROUTES["sglang"] - INFO_ROUTES[self.engine.profile.info]:
            self.reply({"detail": "Not Found"}, 404)
        elif path in self.routes:
            methods, endpoint = self.routes[path]
            await self._serve(endpoint if method in methods else None, methods)
        elif path.rstrip("/") in self.routes:
            query = f"?{self.request.query}" if self.request.query else ""
            self.set_header("Location", f"http://{self.request.host}{path.rstrip('/')}{query}")
            self.reply(b"", 307)
        else:
            self.reply({"detail": "Not Found"}, 404)

    get = head = post = delete = patch = put = options = serve

    async def _serve(self, endpoint: Endpoint | None, methods: tuple[str, ...]) -> None:
        if endpoint is None:
            self.set_header("Allow", ", ".join(methods))
            self.reply({"detail": "Method Not Allowed"}, 405)
            return
        try:
            await endpoint(self)
        except Refusal as refusal:
            self.refuse(refusal)
        except Left:
            self.detach().close()

    def _permitted(self) -> bool:
        path, profile = self.request.path, self.engine.profile
        if self.request.method == "OPTIONS" or path.startswith(_OPEN):
            return True
        admin = path in self.admin and profile.admin_api_key
        wanted = profile.admin_api_key if admin else profile.api_key
        scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
        same = [hmac.compare_digest(key.encode(), one.encode()) for one in wanted.split(",")]
        return not wanted or (scheme.lower() == "bearer" and any(same))

    def unauthorized(self) -> None:
        self.clear_header("Vary")
        self.reply({"error": "Unauthorized"}, 401)

    def document(self) -> Json:
        kind = self.request.headers.get("Content-Type", "")
        return document(self.request.path, kind, self.request.body)

    def reply(self, body: Any, status: int = 200, kind: str = "") -> None:
        """Answer with JSON, or with bytes as they are."""
        raw = isinstance(body, bytes)
        self.set_status(status)
        if kind or not raw:
            self.set_header("Content-Type", kind or JSON)
        self.finish(body if raw else orjson.dumps(body))

    def refuse(self, refusal: Refusal) -> None:
        kind = "text/plain; charset=utf-8" if isinstance(refusal.body, bytes) else JSON
        self.reply(refusal.body, refusal.status, kind)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.refuse(crash())

    async def emit(self, data: bytes) -> None:
        """One event, one HTTP chunk."""
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.engine.events += 1  # before the client can look
        self.write(b"data: " + data + b"\n\n")
        await self.flush()


class Echo(WebSocketHandler, Recorder):
    """Sends back each message of a WebSocket."""

    def initialize(self, engine: Engine, sockets: set[Echo]) -> None:
        self.engine = engine
        self.sockets = sockets

    def check_origin(self, origin: str) -> bool:
        return True

    def open(self, *args: str, **kwargs: str) -> None:
        self.sockets.add(self)

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        self.sockets.discard(self)

    def drop(self) -> None:
        if self.ws_connection is not None and self.ws_connection.stream is not None:
            self.ws_connection.stream.close()
        self.on_close()


def is_probe(body: bytes) -> bool:
    """Whether a body asks for as little as can be."""
    try:
        call = orjson.loads(body)
    except ValueError:
        return False
    if not isinstance(call, dict):
        return False
    is_token = call.get("max_tokens") == 1
    messages = [{"role": "user", "content": "."}]
    is_openai = is_token and (call.get("prompt") == "." or call.get("messages") == messages)
    return call.get("text") == [] or is_openai


def _wake(rest: asyncio.Future[None]) -> None:
    if not rest.done():
        rest.set_result(None)


Endpoint = Callable[[Handler], Awaitable[None]]
Routes = Mapping[str, tuple[tuple[str, ...], Endpoint]]

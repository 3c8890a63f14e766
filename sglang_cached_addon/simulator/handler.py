"""HTTP without the routes: recording, credentials, and answers as SGLang frames them."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

from sglang_cached_addon.simulator.engine import Engine
from sglang_cached_addon.simulator.jobs import Job
from sglang_cached_addon.simulator.profile import Json, Received
from sglang_cached_addon.simulator.reading import document
from sglang_cached_addon.simulator.refusals import Refusal, crash

JSON = "application/json"
_OPEN = ("/health", "/metrics")  # paths that need no key begin like this
_ADMIN = {"/abort_request", "/flush_cache", "/update_weights_from_disk"}


class Recorder(RequestHandler):
    """Records each request; the headers are the simulator's."""

    engine: Engine

    def set_default_headers(self) -> None:
        self.clear_header("Content-Type")
        self.set_header("Server", "sglang-simulator")
        self.set_header("Vary", "Origin")

    def prepare(self) -> None:
        request = self.request
        headers = {name.lower(): value for name, value in request.headers.get_all()}
        path = request.uri or request.path
        self.engine.received.append(Received(request.method or "", path, headers, request.body))


class Handler(Recorder):
    """All HTTP routes: credentials, then the route, then its method."""

    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "OPTIONS")
    job: Job | None = None  # the samples asked for

    def initialize(self, engine: Engine, routes: Routes) -> None:
        self.engine = engine
        self.routes = routes

    def compute_etag(self) -> str | None:
        return None

    def on_connection_close(self) -> None:
        if self.job is not None:
            self.job.leave()

    async def serve(self) -> None:
        path, method = self.request.path, self.request.method or ""
        if not self._permitted():
            self.clear_header("Vary")
            self.reply({"error": "Unauthorized"}, 401)
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

    def _permitted(self) -> bool:
        path, profile = self.request.path, self.engine.profile
        if self.request.method == "OPTIONS" or path.startswith(_OPEN):
            return True
        admin = path in _ADMIN and profile.admin_api_key
        wanted = profile.admin_api_key if admin else profile.api_key
        scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
        given = scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), wanted.encode())
        return not wanted or given

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


Endpoint = Callable[[Handler], Awaitable[None]]
Routes = Mapping[str, tuple[tuple[str, ...], Endpoint]]

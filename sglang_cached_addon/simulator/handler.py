"""HTTP without the routes: credentials, and answers as SGLang frames them."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from tornado.web import RequestHandler

from sglang_cached_addon.simulator.engine import Engine
from sglang_cached_addon.simulator.jobs import Job, Left
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.refusals import Refusal, crash, openai_error

JSON = "application/json"
_OPEN = ("/health", "/ready", "/metrics")  # paths that need no key begin like this


class Handler(RequestHandler):
    """All HTTP routes: credentials, then the route, then its method."""

    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "OPTIONS")
    job: Job | None = None
    """The samples that were asked for."""

    def initialize(self, engine: Engine, routes: Routes) -> None:
        self.engine = engine
        self.routes = routes

    def set_default_headers(self) -> None:
        self.clear_header("Content-Type")
        self.set_header("Server", "sglang-simulator")
        self.set_header("Vary", "Origin")

    def compute_etag(self) -> str | None:
        return None

    def on_connection_close(self) -> None:
        if self.job is not None:
            self.job.leave()

    async def serve(self) -> None:
        path = self.request.path
        if not self.permitted():
            self.unauthorized()
        elif path not in self.routes:
            self.reply({"detail": "Not Found"}, 404)
        elif self.request.method not in (methods := self.routes[path][0]):
            self.set_header("Allow", ", ".join(methods))
            self.reply({"detail": "Method Not Allowed"}, 405)
        else:
            try:
                await self.routes[path][1](self)
            except Refusal as refusal:
                self.refuse(refusal)
            except Left:
                self.detach().close()

    get = head = post = delete = patch = put = options = serve

    def permitted(self) -> bool:
        if self.request.method == "OPTIONS" or self.request.path.startswith(_OPEN):
            return True
        wanted = self.key()
        scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
        same = [hmac.compare_digest(key.encode(), one.encode()) for one in wanted.split(",")]
        return not wanted or (scheme.lower() == "bearer" and any(same))

    def key(self) -> str:
        """The key that the route asks for; "": none."""
        return self.engine.profile.api_key

    def unauthorized(self) -> None:
        self.clear_header("Vary")
        self.reply({"error": "Unauthorized"}, 401)

    def document(self) -> Json:
        """The JSON object in the body."""
        try:
            value = orjson.loads(self.request.body)
        except orjson.JSONDecodeError as wrong:
            raise openai_error(400, f"JSON decode error: {wrong}", "Bad Request") from None
        if not isinstance(value, dict):
            raise openai_error(400, "Input should be a dictionary", "Bad Request")
        return value

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

    async def send(self, body: bytes) -> None:
        """The whole answer to a sampling call."""
        self.reply(body, kind=JSON)

    async def emit(self, data: bytes) -> None:
        """One event, one HTTP chunk."""
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.write(b"data: " + data + b"\n\n")
        await self.flush()


Endpoint = Callable[[Any], Awaitable[None]]
Routes = Mapping[str, tuple[tuple[str, ...], Endpoint]]

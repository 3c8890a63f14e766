"""HTTP as the small simulator does it, recorded, with probes, two keys and the wait of a pause."""

from __future__ import annotations

import asyncio
import contextlib
import functools

import orjson
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

from sglang_cached_addon.dialects import installed
from sglang_cached_addon.dialects.listing import Listing
from sglang_cached_addon.simulator import handler as small
from sglang_cached_addon.simulator import sampling
from sglang_cached_addon.simulator.jobs import Left
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.refusals import Refusal
from tests.simulator import checks
from tests.simulator.engine import Engine
from tests.simulator.jobs import Job
from tests.simulator.profile import INFO_ROUTES, Fault, Received

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


class Recorder(RequestHandler):
    """Records each request."""

    engine: Engine
    is_probe = False
    """It is the smallest call of its API, which only asks whether its sender may generate."""

    def prepare(self) -> None:
        request = self.request
        headers = {name.lower(): value for name, value in request.headers.get_all()}
        path = request.uri or request.path
        self.is_probe = is_probe(request.body)
        seen = self.engine.probes if self.is_probe else self.engine.received
        seen.append(Received(request.method or "", path, headers, request.body))


class Handler(Recorder, small.Handler):
    """All HTTP routes."""

    engine: Engine
    job: Job | None = None
    _rest: asyncio.Future[None] | None = None

    def initialize(self, engine: Engine, routes: small.Routes, admin: small.Routes) -> None:
        super().initialize(engine, routes)
        self.admin = admin  # the paths that want the admin key

    def key(self) -> str:
        profile = self.engine.profile
        is_admin = self.request.path in self.admin and profile.admin_api_key
        return profile.admin_api_key if is_admin else profile.api_key

    def on_connection_close(self) -> None:
        super().on_connection_close()
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
        path = self.request.path
        known = INFO_ROUTES[self.engine.profile.info]
        if self.permitted() and self.is_probe:
            self.reply([])
        elif self.permitted() and path in INFO_ROUTES["sglang"] - known:
            self.reply({"detail": "Not Found"}, 404)
        elif self.permitted() and path not in self.routes and path.rstrip("/") in self.routes:
            query = f"?{self.request.query}" if self.request.query else ""
            self.set_header("Location", f"http://{self.request.host}{path.rstrip('/')}{query}")
            self.reply(b"", 307)
        else:
            await super().serve()

    get = head = post = delete = patch = put = options = serve

    def document(self) -> Json:
        kind = self.request.headers.get("Content-Type", "")
        return checks.document(self.request.path, kind, self.request.body)

    def refuse(self, refusal: Refusal) -> None:
        if self.request.path.startswith(MESSAGES):
            body = refusal.body if isinstance(refusal.body, dict) else {}
            kind = "invalid_request_error" if refusal.status == 400 else "api_error"
            error = {"type": kind, "message": body.get("message", "Internal server error")}
            refusal = Refusal(refusal.status, {"type": "error", "error": error})
        elif self.request.path == RESPONSES and refusal.status == 400:
            message = refusal.body["message"] if isinstance(refusal.body, dict) else ""
            named = {"type": "invalid_request_error", "param": None, "code": 400}
            refusal = Refusal(refusal.status, {"error": {"message": message, **named}})
        super().refuse(refusal)

    async def emit(self, data: bytes) -> None:
        self.engine.events += 1  # before the client can look
        if self.request.path == MESSAGES:  # its events have names
            event = {"type": "message_stop"} if data == b"[DONE]" else orjson.loads(data)
            data = self._named(event)
        elif self.request.path == RESPONSES:  # so it is here, and the last one tells all
            if data == b"[DONE]":
                return
            data = self._named(orjson.loads(data))
        await super().emit(data)

    def _named(self, event: Json) -> bytes:
        """The data of an event, whose name is written before it."""
        event = {"type": "error", **event} if "type" not in event else event
        self.write(b"event: %b\n" % event["type"].encode())
        return orjson.dumps(event)

    async def send(self, body: bytes) -> None:
        if self.job is None or self.job.fault is not Fault.CUT:
            await super().send(body)
            return
        self.set_header("Content-Type", small.JSON)
        self.set_header("Content-Length", str(len(body)))
        self.write(body[: len(body) // 2])
        await self.flush()
        self.detach().close()


class Echo(WebSocketHandler, Recorder):
    """Sends back each message of a WebSocket."""

    set_default_headers = small.Handler.set_default_headers

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
    with contextlib.suppress(ValueError):
        asked = orjson.loads(body)
        return sampling.is_probe(asked) or (
            isinstance(asked, dict) and _but_model(asked) in _probes()
        )
    return False


def _but_model(body: Json) -> Json:
    return {name: value for name, value in body.items() if name != "model"}


@functools.cache
def _probes() -> list[Json]:
    """The smallest calls of the APIs that generate nothing."""
    listings = {dialect for dialect in installed().values() if isinstance(dialect, Listing)}
    return [body for dialect in listings for body in dialect.probes("")]


def _wake(rest: asyncio.Future[None]) -> None:
    if not rest.done():
        rest.set_result(None)

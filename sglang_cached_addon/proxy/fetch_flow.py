"""One fetch on its way through the hooks of flows: held, killed, answered or changed by others.

An answer that is streamed is passed on as it comes, and its `response` hook comes behind it, as
with any flow of mitmproxy's. Every other one is there when its hooks are through.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any

from mitmproxy import http
from mitmproxy.flow import Error

from sglang_cached_addon.proxy import fetch_messages, verdicts
from sglang_cached_addon.proxy.kept import MAX_KEPT, Kept
from sglang_cached_addon.proxy.onlookers import Onlookers
from sglang_cached_addon.wire.connection import Broken, Headers, Response
from sglang_cached_addon.wire.observing import Answer, Killed, Wrapped
from sglang_cached_addon.wire.outgoing import Request


class Stage(Enum):
    """How far a fetch is."""

    AHEAD = "its answer is not ready to be given on"
    COMING = "the body of its answer is given on as it comes"
    ENDED = "all of the body was given on as it came"
    OVER = "other addons were told of its end"


class FetchFlow:
    """Sends one request, as `observing.Sender` has it; it is its `Answer`, too."""

    def __init__(self, onlookers: Onlookers, client: Wrapped, caption: str) -> None:
        self.greeting: asyncio.Future[Any] | None = None
        self.sent: Headers | None = None
        self.is_altered = False
        self.held = 0.0
        self._onlookers = onlookers
        self._client = client
        self._caption = caption
        self._flow: http.HTTPFlow
        self._stage = Stage.AHEAD
        self._come: list[bytes] = []
        """What has come of the body, and is to be given on."""
        self._rest: AsyncIterator[bytes] | None = None
        """What is still to come of it."""

    @asynccontextmanager
    async def open(
        self, method: str, path: str, headers: Headers, body: bytes = b""
    ) -> AsyncIterator[Answer]:
        asked = self._client.request(Request(method, path, headers, body))
        self._flow = fetch_messages.flow_of(self._client, asked, self._caption, verdicts.FETCH)
        try:
            await self._show_request()
            if self._flow.response:
                await self._take_other()
                yield self
                return
            async with self._client.open(*self._to_be_sent(asked)) as response:
                await self._take(response)
                yield self
            await self._finish_stream()
        except BaseException as e:
            self._fail(e)
            raise

    # As the service takes its answer

    @property
    def _response(self) -> http.Response:
        assert self._flow.response
        return self._flow.response

    @property
    def status(self) -> int:
        return self._response.status_code

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return self._response.headers.fields

    async def pieces(self) -> AsyncIterator[bytes]:
        kept = Kept(self._response) if self._stage is Stage.COMING else None
        for piece in self._come:
            for given in self._given(piece, kept):
                yield given
        if kept is None:
            return
        assert self._rest
        try:
            async for piece in self._rest:
                for given in self._given(piece, kept):
                    yield given
        finally:
            kept.end()
        for given in self._given(b"", kept):
            yield given
        self._stage = Stage.ENDED

    def _given(self, piece: bytes, kept: Kept | None) -> list[bytes]:
        """What a piece of the body comes to; nothing stands for its end."""
        if kept and piece:
            kept(piece)
        change = self._response.stream if kept else None
        made = change(piece) if callable(change) else piece
        return [part for part in ([made] if isinstance(made, bytes) else made) if part]

    # What others see, and do

    async def _run(self, hook: str) -> None:
        """Runs a hook; the flow may be held, or killed."""
        await self._onlookers.tell(self._flow, hook)
        if self._flow.intercepted:
            begun = time.monotonic()
            await self._flow.wait_for_resume()
            self.held += time.monotonic() - begun
        if self._flow.error and self._flow.error.msg == Error.KILLED_MESSAGE:
            raise Killed("it was killed in mitmproxy")

    async def _show_request(self) -> None:
        # Who may ask was looked at when the client's own flow came: mitmproxy's `proxyauth` would
        # want a password from this one, too.
        self._flow.is_replay = "request"
        await self._onlookers.tell(self._flow, "requestheaders")
        self._flow.is_replay = None
        await self._run("request")

    def _to_be_sent(self, asked: Request) -> Request:
        """What others have made of the request."""
        flow, client = self._flow, self._client
        if fetch_messages.leads_away(flow, client):
            flow.comment += "; an addon sends it to another server, but it goes to {}:{}".format(
                *client.address
            )
        sent = fetch_messages.request_of(flow, client)
        self.is_altered = not sent.is_like(asked)
        self.sent = None if sent.headers == asked.headers else sent.headers
        return sent

    async def _take_other(self) -> None:
        """Another addon has answered in upstream's place."""
        self.is_altered = True
        self._response.timestamp_start = time.time()
        await self._run("responseheaders")
        await self._finish(self._response.raw_content or b"")

    async def _take(self, response: Response) -> None:
        """Upstream has begun to answer."""
        self.greeting, self._rest = response.greeting, response.pieces()
        fetch_messages.note_connection(self._flow, response)
        self._flow.response = fetch_messages.response_of(response.status, response.headers, None)
        self._response.stream = fetch_messages.is_stream(self._response)
        await self._run("responseheaders")
        self.is_altered |= self.status != response.status
        if not self._response.stream and await self._is_all():
            await self._finish(b"".join(self._come))
            return
        self._stage = Stage.COMING
        self.is_altered |= callable(self._response.stream)

    async def _is_all(self) -> bool:
        """Waits for the body; whether it is short enough to be kept."""
        assert self._rest
        size = 0
        async for piece in self._rest:
            self._come.append(piece)
            size += len(piece)
            if size > MAX_KEPT:
                return False
        return True

    async def _finish(self, body: bytes) -> None:
        """All of the body is there, and nothing of it was given on."""
        before = (self.status, body)
        await self._tell_end(body)
        body = self._response.raw_content or b""
        self.is_altered |= (self.status, body) != before
        self._come = [body]

    async def _finish_stream(self) -> None:
        """Nothing more of the body is wanted."""
        if self._stage is Stage.ENDED:
            await self._tell_end(self._response.raw_content)
        elif self._stage is Stage.COMING:
            self._fail(Broken("the end of its body was not waited for"))

    async def _tell_end(self, body: bytes | None) -> None:
        self._response.raw_content = body
        self._response.timestamp_end = time.time()
        await self._run("response")
        self._flow.live = False
        self._stage = Stage.OVER

    def _fail(self, error: BaseException) -> None:
        """There is no answer, or not all of it."""
        if self._stage is Stage.OVER:
            return
        self._stage, flow = Stage.OVER, self._flow
        is_left = isinstance(error, asyncio.CancelledError)
        flow.error = flow.error or Error("nobody wants it any more" if is_left else str(error))
        flow.resume()
        flow.live = False
        self._onlookers.tell_soon(flow, "error")

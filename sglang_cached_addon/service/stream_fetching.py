"""One fetch of a stream: its events are there for all who read it as they come, and its samples
when it is done.

Events that come behind stored choices must be of the same model as these. Knows asyncio, and
nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from io import BytesIO
from typing import Any

from sglang_cached_addon.core import planning
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.base import generating
from sglang_cached_addon.service import slices
from sglang_cached_addon.service.asking import Arrived, Ask
from sglang_cached_addon.service.fetching import Fetching, Means
from sglang_cached_addon.service.findings import Fetch, Landed
from sglang_cached_addon.service.merging import MERGE_SECONDS
from sglang_cached_addon.service.relay import Relay
from sglang_cached_addon.service.stream import Stream
from sglang_cached_addon.wire.connection import Broken
from sglang_cached_addon.wire.observing import Answer

GRACE_SECONDS = 1.0
"""How long the body of a stream may go on behind its terminator."""


class StreamFetching(Fetching):
    """One fetch of a stream."""

    def __init__(self, means: Means, ask: Ask, fetch: Fetch, *, is_alone: bool) -> None:
        """As `Fetching` has it."""
        self.stream = Stream(planning.stored_choices(fetch.plan))
        super().__init__(means, ask, fetch, self.stream, is_alone=is_alone)

    def _take(self, response: Answer) -> Coroutine[Any, Any, BytesIO | Arrived | None]:
        """As `Fetching` has it; upstream may refuse to stream, or fail."""
        return self._publish(response) if _is_stream(response) else super()._take(response)

    async def _publish(self, response: Answer) -> Arrived | None:
        """Publishes the events of a stream as they come, and reads what they come to."""
        if self._is_of_two():
            return None
        self.stream.open()
        self._tell(Arrived(response.headers, is_stream=True))
        fetch, stream, pieces = self._fetch, self.stream, response.pieces()
        relay = Relay(generating(fetch.known.dialect), fetch.plan, fetch.sent)
        is_topped_up = fetch.plan.have > 0
        arrived: Arrived | None = None
        size = 0
        try:
            async for data in pieces:
                size += len(data)
                events = relay.feed(data)
                if is_topped_up:
                    await self._check(relay)
                if relay.is_done:
                    landed = await self._read_stream(relay, size)
                    # Who has the last word and repeats the call finds it here.
                    arrived = self._land(Arrived(response.headers, landed))
                    stream.tokens = planning.tokens(fetch.plan, arrived.samples)
                stream.publish(events, is_last=relay.is_done)
                if arrived:
                    break
                if stream.is_full:
                    await stream.room(lambda: self.flight.clients)
            if arrived:  # there is nothing more to be waited for, be it that the body never ends
                async with asyncio.timeout(GRACE_SECONDS):
                    async for data in pieces:
                        stream.publish(relay.feed(data))
        except (Broken, TimeoutError):
            if arrived is None:
                stream.publish(relay.remains())
                raise
            if not self._nature.shows_aborts:  # its server may have been ending
                self.flight.refusal = self.flight.refusal or Reason.CUT
        stream.publish(relay.remains())
        stream.end(complete=True)  # be it too early, it ended in good order
        return arrived or self._land(
            Arrived(response.headers, Landed(response.status, refusal=Reason.CUT))
        )

    async def _check(self, relay: Relay) -> None:
        """Raises `Broken` where what comes cannot be put behind what is stored. Before the end, it
        waits a moment for upstream to say whether it is the model that the stored choices are
        of."""
        if relay.is_done:
            version, headers = self._fetch.stamp.model_version, self._ask.credential_headers
            with suppress(TimeoutError):
                async with asyncio.timeout(MERGE_SECONDS):
                    await self._upstream.confirming.confirm(version, headers)
        if self._is_of_two():
            raise Broken("the model has changed, and some of the answer is the former's")
        if relay.is_in_pieces:
            # Its choices have the numbers of stored ones.
            raise Broken("an event of the stream is too long to be put behind stored ones")

    def _is_of_two(self) -> bool:
        """Whether what comes now is put behind samples of another model."""
        fetch = self._fetch
        return fetch.plan.have > 0 and not self._exchange.lookup.is_present(fetch.known)

    async def _read_stream(self, relay: Relay, size: int) -> Landed:
        """What a stream of this many bytes comes to."""
        if size > slices.LARGE:  # others have their turn meanwhile
            return await asyncio.to_thread(self._exchange.land_stream, self._fetch, relay)
        return self._exchange.land_stream(self._fetch, relay)


def _is_stream(response: Answer) -> bool:
    fields = {name.lower(): value for name, value in response.headers}
    media_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    is_plain = b"content-encoding" not in fields
    return response.status == 200 and media_type == b"text/event-stream" and is_plain

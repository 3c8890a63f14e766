"""What clients ask for, and what they are given.

Values, but for `Streamed`, whose pieces come in time. Knows nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.call_head import CallHead, CallHeads, Fields, by_name
from sglang_cached_addon.core.outcome import Outcome
from sglang_cached_addon.service.claims import Claim, Drawn
from sglang_cached_addon.service.findings import Bypass, Hit, Landed
from sglang_cached_addon.service.flight import Flight
from sglang_cached_addon.service.stream import Stream
from sglang_cached_addon.wire import heads
from sglang_cached_addon.wire.connection import Headers


class Outlet(Protocol):
    """What writes events to a client at once."""

    is_full: bool
    """Whether the client reads more slowly than it is answered."""

    def write_events(self, events: list[bytes]) -> None:
        """Writes events, at least one."""


class Ask:
    """One client's request for samples."""

    id = b""
    """The id of the request; empty where nobody has given it one."""
    credential_headers: Fields = ()
    """The header fields by which the client shows who it is, once they were wanted."""
    routing_headers: Fields = ()
    """Those by which a gateway chooses a model, once they were wanted."""
    model: str | None = None
    """The model that its body names, once that was read."""
    flight: Flight | None = None
    """The fetch that was begun for it."""
    fetches: tuple[str, ...] = ()
    """The request ids of all fetches that were begun for it, or that it has waited for."""
    on_fetch: Callable[[], object] | None = None
    """Called when there is one more of them."""
    rids: dict[str, str] | None = None
    """Upstream's request ids, by those that the client gave."""
    task: asyncio.Task[Any] | None = None
    """The task that waits for its answer."""
    stream: Stream | None = None
    """The stream that its client reads."""
    outlet: Outlet | None = None
    """What is given the events of a stream that come while the task that writes them waits; None
    where that task takes them all."""
    abort: asyncio.Future[None] | None = None
    """Done when upstream has answered a request to abort this one; None where there is none."""
    claim: Claim | Drawn | None = None
    """The samples that it has as a call of a run; None where it is of none."""
    is_aborted = False
    """Its client has aborted it, and the fetch goes on for others."""
    partial: Arrived | None = None
    """The answer that upstream gave when it aborted the fetch that this call waited for."""

    def __init__(
        self,
        head: CallHead,
        body: bytes,
        fields: Fields | bytes,
        is_chunkable: bool = True,
        is_local: bool = False,
    ) -> None:
        """`fields` are its header fields as they came, or the bytes of its whole head: most calls
        are hits, and then nobody wants them. A client that `is_chunkable` can be answered piece by
        piece; one that `is_local` is connected from this machine."""
        self.head = head
        self.body = body
        self.is_chunkable = is_chunkable
        self._is_local = is_local
        self._fields = fields

    def joins(self, *flights: Flight) -> None:
        """Fetches were begun for it, or it waits for those of other calls."""
        self.fetches = (*self.fetches, *(flight.id for flight in flights))
        if self.on_fetch:
            self.on_fetch()

    def settle(self, *, is_delivered: bool) -> None:
        """The client has got all of its answer, or will not."""
        claim, self.claim = self.claim, None
        if claim:
            claim.settle(is_delivered=is_delivered and not self.is_aborted)

    def is_shown(self, fields: Headers, call_heads: CallHeads) -> bool:
        """Whether header fields show its credential, and the routing and the versions that are part
        of its key."""
        sent = by_name(fields)
        shown = call_heads.credential_headers(sent), call_heads.routing_headers(sent)
        is_same = call_heads.key_headers.versions(sent) == self.head.versions
        return is_same and shown == (self.credential_headers, self.routing_headers)

    @property
    def is_local(self) -> bool:
        """The client is on this machine, and no proxy has sent the call on."""
        return self._is_local and not self.head.is_relayed

    @property
    def fields(self) -> Fields:
        """Its header fields as they came, to be sent on."""
        if isinstance(self._fields, bytes):
            self._fields = tuple(heads.parse(self._fields).fields)
        return self._fields

    @property
    def asker(self) -> Asker:
        """Who asks, as upstream tells clients apart."""
        return self.head.asker(self.model)


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """A whole answer that is not from the store alone."""

    status: int
    headers: Fields
    body: bytes
    outcome: Outcome


@dataclass(slots=True, eq=False)
class Streamed:
    """An answer that comes in pieces."""

    headers: Fields
    """The header fields of upstream's answer; none where the stream of another call is read."""
    pieces: AsyncIterator[list[bytes]]
    """The events as they come, some at a time. Raises `Cut` where the stream breaks off."""
    outcome: Outcome
    """The outcome, as far as it is known."""
    end: Callable[[bool], Outcome] | None
    """Gives the outcome in the end; it is told whether all pieces were taken. None once it was."""
    exits: ExitStack
    """What is to be released at the end."""

    def close(self, is_complete: bool = False) -> None:
        """The client has all of it, or wants no more. May be called again, to no effect."""
        end, self.end = self.end, None
        if end:
            self.exits.close()
            self.outcome = end(is_complete)


Answer = Hit | Bypass | Reply | Streamed


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """What upstream has answered to a fetch."""

    headers: Fields
    landed: Landed = field(default_factory=lambda: Landed(200))
    samples: tuple[tuple[int, Sample], ...] = ()
    is_stream: bool = False
    """Only the head is here, and the events are on their way."""

    def reply(self, outcome: Outcome) -> Reply:
        """The same as the answer to a client."""
        return Reply(self.landed.status, self.headers, self.landed.body, outcome)

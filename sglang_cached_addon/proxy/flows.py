"""Requests that mitmproxy has read and that are not answered in full, by their clients.

Keeps what is known of each; `hooks` decides what becomes of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mitmproxy import http
from mitmproxy.connection import Client

from sglang_cached_addon.core import request_ids
from sglang_cached_addon.core.call_head import by_name
from sglang_cached_addon.core.outcome import Outcome
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.request_ids import Ids
from sglang_cached_addon.proxy import responses, verdicts
from sglang_cached_addon.proxy.feed import FeedAnswer
from sglang_cached_addon.proxy.onlookers import Onlookers
from sglang_cached_addon.proxy.requests import take_run
from sglang_cached_addon.service.asking import Ask, Streamed
from sglang_cached_addon.upstream import Update


@dataclass(slots=True)
class Live:
    """A request under way."""

    started: float
    """When it came: monotonic, in seconds."""
    id: bytes
    """Its request id."""
    size: int | None = None
    """How many bytes were given of the body of its answer, where that is given piece by piece."""
    outcome: Outcome | None = None
    """What has become of it; None until that is decided."""
    run: str = ""
    """The run that it names."""
    ask: Ask | None = None
    """The call that was made of it, if it is for samples."""
    waiting: asyncio.Task[Any] | None = None
    """The task that waits for the answer, which is of no use without the client."""
    streamed: Streamed | None = None
    """The answer, if it is being fetched piece by piece."""
    feed: FeedAnswer | None = None
    """The answer, if it is given piece by piece."""
    update: Update | None = None
    """The change of the model that it asks for, if it asks for one."""
    passed: Callable[[], None] | None = None
    """To be called when it is over, as it may end calls of others."""
    aborted: Callable[[bool], None] | None = None
    """To be called when upstream has agreed to an abort."""

    def gave(self, begun: Callable[[float], object], size: int) -> None:
        """Something goes out of an answer that is given piece by piece; of the first of it, `begun`
        is told, with when the request came."""
        if not self.size:
            begun(self.started)
        self.size = (self.size or 0) + size


class Flows:
    """The flows under way of all clients."""

    def __init__(self, ids: Ids) -> None:
        """`ids` are for requests whose clients give them none."""
        self._ids = ids
        self._of: dict[Client, dict[http.HTTPFlow, Live]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def begin(self, flow: http.HTTPFlow) -> Live:
        """A request has come; what names its run is taken out of it, and refused if it is bad."""
        given = request_ids.of_client(by_name(flow.request.headers.fields))
        live = Live(time.monotonic(), given or self._ids.next())
        try:
            live.run = take_run(flow.request)
        except ValueError as e:
            flow.response = responses.bad_request(str(e))
        self._of.setdefault(flow.client_conn, {})[flow] = live
        return live

    def get(self, flow: http.HTTPFlow) -> Live | None:
        return self._of.get(flow.client_conn, {}).get(flow)

    def end(self, flow: http.HTTPFlow) -> Live | None:
        """What was known of a flow that is over; None if it was over before."""
        return self._of.get(flow.client_conn, {}).pop(flow, None)

    def left(self, client: Client) -> dict[http.HTTPFlow, Live]:
        """The flows of a client that is gone, which are over."""
        return self._of.pop(client, {})


# In a flow's metadata.
_HEADERS = "sglang_cached"


def note(flow: http.HTTPFlow, live: Live) -> None:
    """Notes what has become of a request where mitmproxy shows it."""
    if outcome := live.outcome:
        fetches = live.ask.fetches if live.ask else ()
        flow.comment = verdicts.comment(outcome, live.id, fetches, live.run)
        if flow.marked in ("", *verdicts.MARKERS.values()):  # else somebody else has marked it
            flow.marked = verdicts.MARKERS[outcome.kind]
        if outcome.reason is not Reason.ROUTE:
            flow.metadata[_HEADERS] = dict(outcome.headers(time.time()))


def note_fetches(flow: http.HTTPFlow, ask: Ask, onlookers: Onlookers) -> None:
    """Notes what a call waits for that is not answered yet."""
    if not onlookers.is_there:
        return
    flow.comment = verdicts.waiting(ask.id, ask.fetches)
    onlookers.update(flow)


def noted(flow: http.HTTPFlow) -> dict[str, str]:
    """The header fields of the outcome that was noted last; none where none was."""
    return dict(flow.metadata.get(_HEADERS, {}))

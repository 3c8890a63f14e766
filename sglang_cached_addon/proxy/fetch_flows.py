"""What upstream is asked, as flows of mitmproxy's own, where other addons look on.

Each fetch is one: its client is this addon, its server upstream. Others may hold it, kill it,
answer it or change it (`fetch_flow`); what they have changed is given to clients, and said to be
altered, so that nothing of it is stored. Besides, the questions that upstream is asked can be
shown. Nothing of them can be changed: what a model is called is upstream's alone to say.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable

from mitmproxy.flow import Error

from sglang_cached_addon.proxy import fetch_messages, verdicts
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.fetch_flow import FetchFlow
from sglang_cached_addon.proxy.onlookers import FLOW_HOOKS, Onlookers
from sglang_cached_addon.wire.client import Unreachable
from sglang_cached_addon.wire.connection import Broken, WholeResponse
from sglang_cached_addon.wire.observing import Sender, Wrapped
from sglang_cached_addon.wire.outgoing import Request


class FetchFlows:
    """Shows what is sent to upstream; an `observing.Observer`."""

    def __init__(self, onlookers: Onlookers, desk: Desk) -> None:
        self._onlookers = onlookers
        self._desk = desk

    @property
    def is_there(self) -> bool:
        return self._onlookers.is_there

    @property
    def sees_questions(self) -> bool:
        settings = self._desk.settings
        return self.is_there and settings is not None and settings.show_probes

    def around(self, client: Wrapped, caption: str) -> Sender:
        return FetchFlow(self._onlookers, client, caption)

    async def question(
        self, client: Wrapped, asked: Request, coming: Awaitable[WholeResponse]
    ) -> WholeResponse:
        flow = fetch_messages.flow_of(
            client, client.request(asked), "probe: asked for the cache itself", verdicts.QUESTION
        )
        flow.is_replay = "request"  # so that mitmproxy does not hold it
        try:
            answer = await coming
        except (Unreachable, Broken) as e:
            flow.error = Error(str(e))
            self._onlookers.tell_soon(flow, "requestheaders", "request", "error")
            raise
        ended, (body, fields) = time.time(), (answer.body, answer.headers)
        flow.response = fetch_messages.response_of(answer.status, fields, body)
        flow.response.timestamp_end = ended
        self._onlookers.tell_soon(flow, *FLOW_HOOKS)
        return answer

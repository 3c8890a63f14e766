"""Requests that change what upstream does: weights, adapters, aborts.

They go upstream as they are, but for the ids in an abort, which upstream knows by other names; the
cache is told before and after.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable
from typing import Any

import orjson
from mitmproxy import http

from sglang_cached_addon.core.call_head import by_name
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.flows import Live
from sglang_cached_addon.proxy.requests import PAUSE
from sglang_cached_addon.upstream import Update


def change(
    desk: Desk, live: Live, kind: Change, adapter: str | None, *, is_whole: bool = False
) -> Awaitable[None] | None:
    """Announces a request that may change the model, and is to be passed on; `is_whole`: all of it
    is here."""
    if desk.parts is None:
        return None
    live.update = desk.parts.upstream.change(kind, adapter)
    return _await_word(live.update, is_whole=is_whole)


async def _await_word(update: Update, *, is_whole: bool) -> None:
    await update.announced
    if is_whole:
        update.sent()


async def abort(desk: Desk, flow: http.HTTPFlow, live: Live) -> None:
    """Sends an abort on under the ids that upstream knows. Calls that share a fetch are ended
    here, when upstream has agreed."""
    message = _object(flow.request.get_content(strict=False) or b"")
    if desk.parts is None:
        return
    service, upstream = desk.parts.service, desk.parts.upstream
    rid = message.get("rid")
    is_pause = flow.request.path == PAUSE
    if message.get("mode", "abort") == "abort" if is_pause else message.get("abort_all"):
        live.aborted = service.aborts.aborting(None)
    elif is_pause:
        return
    elif isinstance(rid, str) and service.aborts.is_known(rid):
        live.aborted = service.aborts.aborting(rid)
        # One that upstream does not know means nothing to it.
        first, *others = service.aborts.targets(rid) or [uuid.uuid4().hex]
        shown = [
            (name, value)
            for name, value in by_name(flow.request.headers.fields).items()
            if name in (b"authorization", b"content-type")
        ]
        for other in others:
            body = orjson.dumps({**message, "rid": other})
            await upstream.post("/abort_request", body, shown)
        flow.request.content = orjson.dumps({**message, "rid": first})


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}

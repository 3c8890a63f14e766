"""What comes of requests that change the model: by how far they got, and what upstream said."""

from __future__ import annotations

import asyncio
from typing import Any

from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream.changes import Ending, Update, Updates
from tests.tables import each
from tests.upstream.scripted import bounded, settled

DONE, NOTHING = Ending.CARRIED_OUT, Ending.WITHOUT_EFFECT

# By upstream's status, where it had all of the request.
STATUSES: dict[int | None, Ending] = {
    200: DONE, 202: DONE, 400: DONE, 500: DONE, 502: DONE, 503: DONE, 504: DONE, None: DONE,
    307: NOTHING, 401: NOTHING, 403: NOTHING, 404: NOTHING, 405: NOTHING, 411: NOTHING,
    413: NOTHING, 422: NOTHING, 429: NOTHING, 501: NOTHING,
}  # fmt: skip


async def begin(**kwargs: Any) -> tuple[Updates, Update, list[Ending]]:
    endings: list[Ending] = []
    updates = Updates(lambda update, what: endings.append(what))
    announced = asyncio.get_running_loop().create_future()
    return updates, updates.begin(Change.MODEL, None, announced), endings


@each("status", STATUSES)
@each("is_sent", [True, False])
@each("has_reached", [True, False])
@bounded
async def test_endings(status: int | None, is_sent: bool, has_reached: bool) -> None:
    """Only what upstream has carried out, or may have, changes something: not what it refuses,
    nor what it never had as a whole, unless it says that it was successful."""
    _, update, endings = await begin()
    if is_sent:
        update.sent()
    update.ended(status, has_reached=has_reached)
    update.ended(200)
    is_success = status in (200, 202)
    expected = STATUSES[status] if is_success or (is_sent and has_reached) else NOTHING
    assert endings == [expected]


@bounded
async def test_when_the_model_may_be_changing() -> None:
    """From the moment at which upstream has all of a request until it has answered; one that is
    held open, or comes slowly, holds up nobody."""
    updates, one, endings = await begin()
    other = updates.begin(Change.ADAPTER, "a", one.announced)
    held = updates.begin(Change.MODEL, None, one.announced)
    assert updates.quiet.is_set()
    await updates.quiet.wait()
    one.sent()
    other.sent()
    quiet = asyncio.ensure_future(updates.quiet.wait())
    one.ended(401)
    await settled()
    assert not updates.quiet.is_set()
    assert not quiet.done()
    other.ended(200)
    await quiet
    assert updates.quiet.is_set()
    held.ended(None)
    assert endings == [NOTHING, DONE, NOTHING]
    held.sent()
    assert updates.quiet.is_set()

"""Work that is shared: by those who come while it is under way, or by those who want the next."""

from __future__ import annotations

import asyncio
import itertools
import sys

from sglang_cached_addon.upstream.single import Following, Single
from tests.tables import each
from tests.upstream.scripted import bounded, settled


@each("is_eager", [False, True][: 1 + (sys.version_info >= (3, 12))])
@bounded
async def test_work_that_ends_at_once(is_eager: bool) -> None:
    """Work that never waits is done when it is begun, and the next one begins anew."""
    begun = 0

    async def work() -> int:
        nonlocal begun
        begun += 1
        return begun

    if is_eager:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    one: Single[int] = Single()
    assert [await one.join(work) for _ in range(3)] == [1, 2, 3]
    assert not one.is_busy
    next_one: Following[int] = Following()
    assert [await next_one.join(work) for _ in range(3)] == [4, 5, 6]


@bounded
async def test_a_pause_between() -> None:
    """Pieces do not begin faster than they may."""
    loop, begun = asyncio.get_running_loop(), []

    async def work() -> None:
        begun.append(loop.time())

    following: Following[None] = Following(0.02)
    for _ in range(3):
        await following.join(work)
    assert all(after - before >= 0.019 for before, after in itertools.pairwise(begun))


@bounded
async def test_nothing_is_left() -> None:
    """What is given up is ended."""

    async def work() -> None:
        await asyncio.Event().wait()

    one: Single[None] = Single()
    one.cancel()
    following: Following[None] = Following()
    following.cancel()
    waiting = [one.join(work), following.join(work)]
    await settled()
    waiting.append(following.join(work))
    one.cancel()
    following.cancel()
    await settled()
    assert all(answer.done() for answer in waiting)
    assert len(asyncio.all_tasks()) == 1

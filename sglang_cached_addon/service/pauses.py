"""Pauses in long work that is done in a thread of its own.

In each, other threads have their turn. Now and then what was freed since goes back to the system:
glibc keeps what lies between other things, as much as a whole large answer. Where there is no
glibc, it is kept.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable
from typing import TypeVar

RELEASE_SECONDS = 0.005
"""How long what was freed is kept at least: to give it back takes a millisecond or so."""

_trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)


_T = TypeVar("_T")


async def beside(work: Callable[[Callable[[], None]], _T]) -> _T:
    """What long work comes to, done in a thread; it is given what it calls for its pauses."""

    def all_of_it() -> _T:
        try:
            return work(pausing())
        finally:
            release()

    return await asyncio.to_thread(all_of_it)


def release() -> None:
    """Gives back what was freed."""
    if _trim:
        _trim(0)


def pausing() -> Callable[[], None]:
    """What one piece of work calls for each of its pauses."""
    released_at = time.monotonic()

    def pause() -> None:
        nonlocal released_at
        time.sleep(0)
        if time.monotonic() > released_at + RELEASE_SECONDS:
            release()
            released_at = time.monotonic()

    return pause

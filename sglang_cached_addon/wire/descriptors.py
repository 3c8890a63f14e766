"""File descriptors: how many there may be, and who may have the last ones.

The system gives out the lowest number that is free, so the number that it would give next tells how
many are left at most. Clients may have three quarters of them, and connections to upstream all but
a few, which are the store's. What finds none left waits for one instead of failing, and meanwhile
`make_room` hangs up clients that wait for no answer.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import time
from collections.abc import Callable

MOST = 65_536
"""How many descriptors the process asks for, as each connection takes memory as well."""

SPARE = 16
"""How many of the last descriptors only the store may have."""

WAIT_SECONDS = 0.05
"""How many seconds a task that waits for a descriptor sleeps before it looks again."""

SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""The error numbers of a call that got no descriptor."""


def raise_limit() -> int:
    """Raises the limit of this process as far as it may, and gives it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return limit()


def limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def for_clients() -> int:
    """How many descriptors there may be before clients get no more."""
    return limit() * 3 // 4


def is_left(below: int) -> bool:
    """Whether a descriptor with a number below that one is free."""
    try:
        found = os.dup(0)
    except OSError:
        return False
    os.close(found)
    return found < below


def _keep_all() -> None:
    pass


make_room: Callable[[], object] = _keep_all
"""Hangs up clients that wait for no answer. The module that knows the clients sets it."""

_asked = float("-inf")


def ask_for_room() -> None:
    """Calls `make_room`, once for all tasks that wait."""
    global _asked
    if time.monotonic() - _asked >= WAIT_SECONDS:
        _asked = time.monotonic()
        make_room()


async def for_upstream() -> None:
    """Waits until there is a descriptor for a connection to upstream."""
    while not is_left(limit() - SPARE):
        ask_for_room()
        await asyncio.sleep(WAIT_SECONDS)

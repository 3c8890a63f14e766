"""File descriptors: how many there may be, and who may have the last ones.

The system gives out the lowest number that is free, so the number that it would give next tells
how many are left at most. Clients leave a quarter to what they are answered with, connections to
upstream a few to the store: who finds none left waits for one, and fails nobody. Meanwhile
`make_room` is asked to hang up clients that nobody waits for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import time
from collections.abc import Callable

MOST = 65_536
"""How many are taken, if the system lets one choose: each connection takes memory as well."""

SPARE = 16
"""Those that only the store may have."""

WAIT_SECONDS = 0.05
"""How often who waits for one looks again."""

SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""The errors of who could not get one."""


def raise_limit() -> int:
    """Lets this process have as many as it may; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return limit()


def limit() -> int:
    """How many there may be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def for_clients() -> int:
    """How many there may be before clients get no more."""
    return limit() * 3 // 4


def is_left(below: int) -> bool:
    """Whether there is a number below that one."""
    try:
        found = os.dup(0)
    except OSError:
        return False
    os.close(found)
    return found < below


def _keep_all() -> None:
    pass


make_room: Callable[[], object] = _keep_all
"""To be set by who knows the clients."""

_asked = float("-inf")


def ask_for_room() -> None:
    """Has some clients hung up, however many want their descriptors."""
    global _asked
    if time.monotonic() - _asked >= WAIT_SECONDS:
        _asked = time.monotonic()
        make_room()


async def for_upstream() -> None:
    """Returns when there is one for a connection to upstream."""
    while not is_left(limit() - SPARE):
        ask_for_room()
        await asyncio.sleep(WAIT_SECONDS)

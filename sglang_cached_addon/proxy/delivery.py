"""Answers to calls of runs that are written: a client has one when its last byte has left.

Until then, the call gives its samples back if the connection breaks.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang_cached_addon.service.asking import Ask


class Delivery:
    """What one client was sent."""

    def __init__(self, unread: Callable[[], int]) -> None:
        """`unread` gives the number of bytes that the client has not taken."""
        self._unread = unread
        self._written: list[Ask] = []

    def wrote(self, ask: Ask, *, is_whole: bool = True) -> None:
        """The answer to a call is written, or broken off."""
        if not ask.claim:
            return
        if is_whole:
            self._written.append(ask)
        else:
            ask.settle(is_delivered=False)

    def look(self) -> None:
        """Where the client has taken all bytes, it has all answers."""
        if self._written and not self._unread():
            self._settle(is_delivered=True)

    def end(self, *, is_broken: bool) -> None:
        """The connection is no more."""
        self._settle(is_delivered=not is_broken)

    def _settle(self, *, is_delivered: bool) -> None:
        while self._written:
            self._written.pop().settle(is_delivered=is_delivered)

"""Whether several servers take turns behind one URL.

Pure: times are arguments, monotonic, in seconds. A balancer that sends each request of a connection
to another server lets nobody know which of them has answered: who is asked behind an answer may be
another one. It is found out by a server that comes back: one that was there before, and has had
another in its place on the same connection. A process that has ended never does, and one that is
started in its place is seen once.
"""

from __future__ import annotations

from math import inf

from sglang_cached_addon.core.identity import Identity

MEMORY_SECONDS = 60.0
"""How long ago one that comes back was seen at most: weights that are changed for longer are one
server's."""

REST_SECONDS = 300.0
"""How long after that several are thought to be there."""

_MAX = 16
"""How many servers are remembered."""


class Sightings:
    """Who was seen on the connection on which upstream is asked who it is."""

    def __init__(self) -> None:
        self._connection = 0
        self._last = ""
        self._seen: dict[str, float] = {}
        """When each one was last seen on this connection."""
        self._several_until = -inf

    def saw(self, connection: int, who: Identity, now: float) -> None:
        """One has named itself on a connection of this number."""
        if connection != self._connection:
            self._connection, self._last = connection, ""
            self._seen.clear()
        # Of one process, the model may change to and fro.
        name = who.incarnation or who.digest
        is_back = self._last not in ("", name) and now - self._seen.get(name, -inf) < MEMORY_SECONDS
        if is_back:
            self.take_turns(now)
        self._last = name
        self._seen.pop(name, None)
        self._seen[name] = now
        if len(self._seen) > _MAX:
            del self._seen[next(iter(self._seen))]

    def take_turns(self, now: float) -> None:
        """Another has answered between two answers of one."""
        self._several_until = now + REST_SECONDS

    def are_several(self, now: float) -> bool:
        """Whether several servers take turns, as far as it is known."""
        return now < self._several_until

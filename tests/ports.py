"""Ports for servers that are to be at a known place, and addresses at which nobody is."""

from __future__ import annotations

import socket

_held: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 that nobody else is given as long as this process lives.

    A socket that does not listen holds it: who connects there is refused, and a server may listen
    if it sets SO_REUSEADDR, as all do that are used here. A port that was merely free a moment ago
    may be that of another test's server by the time it is used.
    """
    place = socket.socket()
    _held.append(place)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(("127.0.0.1", 0))
    return int(place.getsockname()[1])


def dead_url() -> str:
    """An address where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"

"""What a client has sent and the fast lane has not dealt with yet."""

from __future__ import annotations


class Held(bytearray):
    """These bytes. Between two calls they begin with a request."""

    wanted = 0
    """Bytes of that request, as far as its head is known."""

    def keep(self, data: bytes | bytearray, at: int) -> None:
        """Holds what is behind a place of the data, which may be what is held already."""
        if data is self:
            del self[:at]
        else:
            self[:] = data[at:]
        self.wanted = 0

    def release(self) -> bytes:
        """What was held, which is held no more."""
        data = bytes(self)
        self.keep(b"", 0)
        return data


def part(data: bytes | bytearray, begin: int, end: int) -> bytes:
    """A copy, and not a copy of a copy."""
    return data[begin:end] if type(data) is bytes else bytes(memoryview(data)[begin:end])

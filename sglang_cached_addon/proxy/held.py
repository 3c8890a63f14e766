"""What a client has sent and the fast lane has not dealt with yet."""

from __future__ import annotations


class Held(bytearray):
    """The bytes themselves. Where the lane waits for more, they begin with a request."""

    wanted = 0
    """How many bytes that request has; 0 until its head is complete."""

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
    """What lies between two places of the data, copied once."""
    return data[begin:end] if type(data) is bytes else bytes(memoryview(data)[begin:end])

"""What dialects do alike whose calls are for one sample each, and whose clients name no ids.

Pure. A stream is of that sample alone, and its usage is told in an event that has more to say: a
fetch asks for nothing besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, Mint, Recorded, UpstreamCall
from sglang_cached_addon.core.identity import UNKNOWN, Server


class Single:
    """The dialect of such an API, as `Generating`."""

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> UpstreamCall:
        return UpstreamCall(call.body, (0,), 1, server=server)

    def repeated(self, body: dict[str, Any], count: int) -> dict[str, Any] | None:
        return None

    def usage(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> bytes | None:
        return None

    def without_usage(self, event: bytes, value: Any) -> bytes:
        return event

    def renumber(self, event: Any, choices: Sequence[int], like: Recorded) -> None:
        pass

    def rename(self, event: Any, call: Call) -> bool:
        return False

    def cut(self, event: Any) -> None:
        pass

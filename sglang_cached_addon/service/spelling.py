"""What tokens are as text: upstream is asked, at `/detokenize`, before a greedy answer is cut.

Whatever goes wrong there only means that the call is answered otherwise. Knows asyncio, and
nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from sglang_cached_addon.service.asking import Ask
from sglang_cached_addon.upstream import Upstream
from sglang_cached_addon.wire.client import Unreachable
from sglang_cached_addon.wire.connection import Broken

PATH = "/detokenize"

SECONDS = 5.0
"""How long upstream may take; it generates nothing for this."""

_ABSENT = (404, 405, 501)


class Spelling:
    """Asks one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._lacking: int | None = None
        """The version of the model whose server has no such route."""

    async def texts(self, ask: Ask, body: dict[str, Any]) -> Sequence[str] | None:
        """The texts of the lists of tokens in a body, asked for on a client's behalf; None where
        they are not to be had."""
        version = self._upstream.model.version
        if self._lacking == version:
            return None
        try:
            async with asyncio.timeout(SECONDS):
                answer = await self._upstream.client.ask(
                    "POST", PATH, ask.fields, orjson.dumps(body)
                )
            found = orjson.loads(answer.body) if answer.status == 200 else None
        except (TimeoutError, Unreachable, Broken, ValueError):
            return None
        if answer.status in _ABSENT:
            self._lacking = version
        texts = found.get("text") if isinstance(found, dict) else None
        if not isinstance(texts, list) or len(texts) != len(body["tokens"]):
            return None
        return texts if all(isinstance(text, str) for text in texts) else None

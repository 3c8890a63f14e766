"""OpenAI's `/v1/chat/completions`: one conversation a call, `n` choices.

Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.dialects import base, openai
from sglang_cached_addon.dialects.base import Call, Fill, Mint, Split
from sglang_cached_addon.keys import canonical
from sglang_cached_addon.policy import Reason, Refused


class Chat:
    """The dialect of POST `/v1/chat/completions`."""

    name = "openai-chat"
    routes = (("POST", "/v1/chat/completions"),)
    transport = openai.TRANSPORT

    def read(self, body: dict[str, Any]) -> Call:
        base.refuse_unstorable(body)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refused(Reason.MALFORMED)
        n = base.read_n(body)
        openai.refuse_shared_report(body, n)
        if any(_names_media(message) for message in messages):
            raise Refused(Reason.MEDIA)
        content = base.content_fields(body, openai.TRANSPORT)
        content.pop("n", None)
        return Call(body, (canonical(content),), n, False, base.read_rids(body, n, False, 1))

    def trim(self, call: Call, shortfalls: Sequence[int], mint: Mint) -> Fill:
        n = shortfalls[0]
        body = dict(call.body)
        if n != call.n:
            body["n"] = n
        return Fill(body, (0,), n, base.mint_rids(call, body, (0,), n, mint))

    def split(self, call: Call, fill: Fill, answer: Any) -> Split:
        return openai.split(fill, answer, [1])

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        return openai.write(call, samples)


def _names_media(message: Any) -> bool:
    """Whether a part of the message is fetched by the server from elsewhere."""
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list):
        return False
    return any(
        base.media_refusal(value)
        for part in parts
        if isinstance(part, dict)
        for name, value in part.items()
        if name.endswith("_url") or name in ("image", "video", "audio", "url")
    )


DIALECT = Chat()

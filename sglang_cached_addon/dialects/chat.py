"""OpenAI's `/v1/chat/completions`: one conversation a call, `n` choices.

Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.dialects import base, chat_stream, openai, openai_stream
from sglang_cached_addon.dialects.base import Call, Fill, Mint, Recorded, Recorder, Script, Split
from sglang_cached_addon.keys import canonical
from sglang_cached_addon.policy import Reason, Refused


class Chat:
    """The dialect of POST `/v1/chat/completions`."""

    name = "openai-chat"
    routes = (("POST", "/v1/chat/completions"),)
    transport = openai.TRANSPORT

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return openai.probes(model, {"messages": [{"role": "user", "content": "."}]})

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
        rids, stream = base.read_rids(body, n, False, 1), openai_stream.streaming(body)
        return Call(body, (canonical(content),), n, False, rids, stream)

    def trim(self, call: Call, shortfalls: Sequence[int], mint: Mint) -> Fill:
        n = shortfalls[0]
        body = dict(call.body)
        if n != call.n:
            body["n"] = n
        openai_stream.ask_for_usage(call, body)
        return Fill(body, (0,), n, base.mint_rids(call, body, (0,), n, mint))

    def split(self, call: Call, fill: Fill, answer: Any) -> Split:
        return openai.split(fill, answer, [1])

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        return openai.write(call, samples)

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        said = {"message": {"role": "assistant", "content": "", "reasoning_content": None}}
        return openai.aborted(call, rid, now, "chat.completion", said)

    def record(self, call: Call, fill: Fill) -> Recorder:
        return openai_stream.Recorder(
            [chat_stream.Tape() for _ in range(fill.total)],
            chat_stream.JSON_KIND,
            lambda answer, ids, tokens: openai.split(fill, answer, [1], ids, tokens),
            wants_rows=bool(call.body.get("logprobs")),
        )

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        return openai_stream.script(call, samples, chat_stream.chunks)

    def usage(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> bytes | None:
        return openai_stream.usage(call, samples, chat_stream.KIND, nulls=True)

    def renumber(self, event: Any, choices: Sequence[int], like: Recorded) -> None:
        openai_stream.renumber(event, choices, like)

    def rename(self, event: Any, rids: Sequence[str]) -> None:
        openai_stream.rename(event, rids)

    def cut(self, event: Any) -> None:
        pass  # no event has all of a choice


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

"""OpenAI's `/v1/chat/completions`: one conversation a call, `n` choices.

Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, Fill, Mint, Recorded, Script, Split
from sglang_cached_addon.core.identity import SGLANG, UNKNOWN, VLLM, Server
from sglang_cached_addon.core.keys import canonical
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import base, chat_stream, openai, openai_stream
from sglang_cached_addon.dialects.base import Recorder


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
        is_seeded = body.get("seed") is not None
        return Call(body, (canonical(content),), n, False, rids, stream, is_seeded)

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> Fill:
        n, order, skip = base.draw(call, shortfalls, server)
        body = dict(call.body)
        if n != call.n:
            body["n"] = n
        is_one = len(order) * n == 1
        counts = openai_stream.ask_for_usage(call, body, server, is_one=is_one)
        added = () if is_one else openai.ask_for_tokens(call, body, server, _TELLS)
        rids = base.mint_rids(call, body, order, n, mint)
        return Fill(body, order, n, rids, server, skip, added, counts)

    def split(self, call: Call, fill: Fill, answer: Any) -> Split:
        return openai.split(fill, answer, [None], limit=_limit(call))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        return openai.write(call, samples)

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        said = {"message": {"role": "assistant", "content": "", "reasoning_content": None}}
        return openai.aborted(call, rid, now, "chat.completion", said)

    def record(self, call: Call, fill: Fill) -> Recorder:
        return openai_stream.Recorder(
            [chat_stream.Tape() for _ in range(fill.total)],
            chat_stream.JSON_KIND,
            lambda answer, told: openai.split(fill, answer, [None], told, limit=_limit(call)),
            server=fill.server,
            wants_rows=bool(call.body.get("logprobs")),
        )

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        return openai_stream.script(call, samples, chat_stream.chunks)

    def usage(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> bytes | None:
        return openai_stream.usage(call, samples, chat_stream.KIND, nulls=True)

    def without_usage(self, event: bytes, value: Any) -> bytes:
        return openai_stream.without_usage(event, value)

    def renumber(self, event: Any, choices: Sequence[int], like: Recorded) -> None:
        openai_stream.renumber(event, choices, like)

    def rename(self, event: Any, rids: Sequence[str]) -> None:
        openai_stream.rename(event, rids)

    def cut(self, event: Any) -> None:
        pass  # no event has all of a choice


_TELLS = {SGLANG: ("return_meta_info", "meta_info"), VLLM: ("return_token_ids", "token_ids")}
"""What to ask for, so that each choice tells how long it is, and where it then tells it."""


def _limit(call: Call) -> Any:
    """The tokens of a choice at most."""
    limit = call.body.get("max_completion_tokens")
    return call.body.get("max_tokens") if limit is None else limit


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

"""OpenAI's `/v1/chat/completions`: one conversation a call, `n` choices.

Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from sglang_cached_addon.core.call import Call, UpstreamCall
from sglang_cached_addon.core.keys import canonical
from sglang_cached_addon.core.neighbours import SGLANG, VLLM
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    chat_chunks,
    chat_display,
    chat_family,
    chat_stream,
    reading,
)
from sglang_cached_addon.dialects.openai import asking, choices
from sglang_cached_addon.dialects.openai.api import Api


class Chat(Api):
    """The dialect of POST `/v1/chat/completions`."""

    name = "openai-chat"
    routes = (("POST", "/v1/chat/completions"),)
    kind, chunk_kind = "chat.completion", chat_chunks.KIND
    writes_nulls = True
    family = chat_family.ChatFamily()
    display = chat_display.ChatDisplay()
    choice_recorder = chat_stream.ChoiceRecorder
    chunks = staticmethod(chat_chunks.chunks)
    tells = MappingProxyType(
        {
            SGLANG: ("return_meta_info", "meta_info"),
            VLLM: ("return_token_ids", "token_ids", "prompt_token_ids"),
        }
    )

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return asking.probes(model, {"messages": [{"role": "user", "content": "."}]})

    def read(self, body: dict[str, Any]) -> Call:
        reading.refuse_unstorable(body)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refused(Reason.MALFORMED)
        n = reading.read_n(body)
        asking.refuse_dependent(body, n)
        if body.get("audio") is not None:
            raise Refused(Reason.STATE)  # an answer in audio has an id, by which it is known later
        reading.refuse_media(messages)
        content = reading.content_fields(body, asking.TRANSPORT)
        content.pop("n", None)
        rids, stream = reading.read_rids(body, n, False, 1), asking.streaming(body)
        is_seeded, is_greedy = body.get("seed") is not None, reading.is_greedy(body)
        return Call(body, (canonical(content),), n, False, rids, stream, is_seeded, is_greedy)

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        said = {"message": {"role": "assistant", "content": "", "reasoning_content": None}}
        return choices.aborted(call, rid, now, self.kind, said)

    def prompts(self, call: Call, sent: UpstreamCall) -> list[Any]:
        return [None]

    def limit(self, call: Call) -> Any:
        limit = call.body.get("max_completion_tokens")
        return call.body.get("max_tokens") if limit is None else limit

    def wants_rows(self, call: Call) -> bool:
        return bool(call.body.get("logprobs"))


DIALECT = Chat()

"""Anthropic's `/v1/messages`, and `/v1/messages/count_tokens`, as SGLang has them: one conversation
a call, and one answer.

SGLang shows an answer that was aborted as one that came to its end. What it makes of a call is a
chat; of header fields it reads none, and of queries only `?beta=true` is known to mean nothing.
Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sglang_cached_addon.core.call import (
    Call,
    Generation,
    Recorded,
    Script,
    Split,
    StreamOptions,
    UpstreamCall,
)
from sglang_cached_addon.core.keys import canonical
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    base,
    judging,
    listing,
    messages_answer,
    messages_display,
    messages_stream,
    reading,
    single,
)
from sglang_cached_addon.dialects.display import listed
from sglang_cached_addon.dialects.messages_script import script
from sglang_cached_addon.dialects.messages_stream import EVENTS

_PATH, _COUNT = "/v1/messages", "/v1/messages/count_tokens"
_BETA = "?beta=true"
"""What Anthropic's clients put behind the path."""

_INLINE = ("base64", "text", "content")
"""The types of sources whose content is in the body."""

_MEDIA = ("image", "document", "container_upload")
"""The types of blocks that may name something outside of the body."""

_OF_SERVERS = ("web_search_", "web_fetch_", "code_execution_", "mcp_toolset", "tool_search_")
"""What the types of tools begin with that a server uses by itself, and whose results are of the
moment. SGLang has none, and leaves them out."""


_VERSION = (b"anthropic-version", b"2023-06-01")
"""What Anthropic's own server, and some others, want each call to say; there is no later one."""


TRANSPORT: base.TransportTable = {
    "stream": (bool, base.NULL),
    "metadata": (dict, base.NULL),
    "routed_dp_rank": (int, base.NULL),
}
"""Framing, what names a user, and scheduling: nothing of it reaches the model."""


class Messages(single.Single):
    """The dialect of POST `/v1/messages`."""

    name = "anthropic-messages"
    routes = (("POST", _PATH), ("POST", _PATH + _BETA))
    transport = TRANSPORT
    nature = base.Nature(
        has_n=False,
        shows_aborts=False,
        event_names=EVENTS,
        last_events=("message_stop",),
        fields=(_VERSION,),
    )
    display = messages_display.MessagesDisplay()

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        named = {"model": model} if model else {}
        said = [{"role": "user", "content": "."}]
        return ({**named, "messages": said, "max_tokens": 1, "temperature": 0},)

    def read(self, body: dict[str, Any]) -> Call:
        _refuse(body)
        is_stream, is_seeded = reading.is_stream(body, ()), body.get("seed") is not None
        return Call(
            body,
            (canonical(reading.content_fields(body, self.transport)),),
            1,
            False,
            stream=StreamOptions() if is_stream else None,
            is_seeded=is_seeded,
            is_greedy=reading.is_greedy(body),
        )

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        return messages_answer.split(answer)

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        return samples[0][0]

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        return judging.dump(
            {
                "id": f"msg_{rid}",
                "type": "message",
                "role": "assistant",
                "content": [{"type": "text", "text": ""}],
                "model": call.body.get("model"),
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 0, "output_tokens": 0},
            }
        )

    # Streams

    def record(self, call: Call, sent: UpstreamCall) -> base.Recorder:
        return messages_stream.Recorder(sent.server)

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        return script(samples[0][0])


class CountTokens(listing.Listing):
    """The dialect of POST `/v1/messages/count_tokens`."""

    name = "anthropic-count-tokens"
    routes = (("POST", _COUNT), ("POST", _COUNT + _BETA))
    nature = base.Nature(fields=(_VERSION,))
    display = messages_display.CountDisplay()

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        named = {"model": model} if model else {}
        return ({**named, "messages": [{"role": "user", "content": "."}]},)

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        _refuse(body)
        return ()

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        count = answer.get("input_tokens") if isinstance(answer, dict) else None
        if judging.is_error(answer) or type(count) is not int:
            raise Refused(Reason.ERROR if judging.is_error(answer) else Reason.UNREADABLE)
        return Split((Generation(0, judging.dump(answer), 0),))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        return samples[0][0]


def _refuse(body: dict[str, Any]) -> None:
    """Raises `Refused` for a body that is not looked up by either."""
    reading.refuse_unstorable(body)
    messages, tools = body.get("messages"), body.get("tools")
    if not isinstance(messages, list) or not messages:
        raise Refused(Reason.MALFORMED)
    if reading.given(body, ("mcp_servers", "container")) or any(map(_is_of_server, listed(tools))):
        raise Refused(Reason.SERVER_TOOLS)
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    if any(_names_media(block) for block in _blocks(*contents, body.get("system"))):
        raise Refused(Reason.MEDIA)


def _is_of_server(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind.startswith(_OF_SERVERS)


def _blocks(*contents: Any) -> Iterable[dict[str, Any]]:
    """The blocks of contents, and those that stand in them, as in the results of tools."""
    todo = [block for content in contents for block in listed(content)]
    while todo:
        block = todo.pop()
        if isinstance(block, dict):
            yield block
            todo += listed(block.get("content"))
            if isinstance(source := block.get("source"), dict):
                todo += listed(source.get("content"))


def _names_media(block: dict[str, Any]) -> bool:
    """Whether the server fetches what a block is about from elsewhere."""
    if block.get("type") not in _MEDIA:
        return False
    source = block.get("source")
    return not (isinstance(source, dict) and source.get("type") in _INLINE)


MESSAGES, COUNT_TOKENS = Messages(), CountTokens()

"""OpenAI's `/v1/responses`, as far as nothing of it is kept by a server: one conversation a call,
and one answer.

What a call has that does not reach the model is its own in the answer. Checked against SGLang
0.5.23, which keeps answers, for clients that come back to them, only where it says that it does
(`enable_response_store`), and puts the date into the prompts of gpt-oss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Recorded, Script, Split, StreamOptions, UpstreamCall
from sglang_cached_addon.core.keys import canonical
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    base,
    judging,
    reading,
    responses_answer,
    responses_display,
    responses_events,
    responses_script,
    responses_stream,
    single,
)
from sglang_cached_addon.dialects.display import listed

_OF_CLIENTS = ("function", "custom", "namespace", "local_shell")
"""The types of tools that clients use. All others a server uses by itself, and what comes of that
is of the moment."""

_LOGPROBS = "message.output_text.logprobs"

TRANSPORT: base.TransportTable = {
    "stream": (bool, base.NULL),
    "priority": (int,),
    "routed_dp_rank": (int, base.NULL),
    "data_parallel_rank": (int, base.NULL),
    "session_id": (str, base.NULL),
    "client_metadata": (dict, base.NULL),
    "user": (str,),
    "metadata": (dict,),
    "store": (bool,),
    "prompt_cache_key": (str,),
    "safety_identifier": (str,),
}
"""Framing, scheduling, and what names users, sessions and calls: nothing of it reaches the model.
Those that an answer repeats are left out with what they say alone: that they are there counts."""


class Responses(single.Single):
    """The dialect of POST `/v1/responses`."""

    name = "openai-responses"
    routes = (("POST", "/v1/responses"),)
    transport = TRANSPORT
    nature = base.Nature(
        has_n=False,
        shows_aborts=False,  # SGLang of former versions does not
        event_names=responses_stream.EVENTS,
        last_events=responses_events.ENDS,
        holds_for_a_day=True,
    )
    display = responses_display.ResponsesDisplay()

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        named = {"model": model} if model else {}
        # SGLang takes two off.
        return ({**named, "input": ".", "max_output_tokens": 3, "temperature": 0, "store": False},)

    def read(self, body: dict[str, Any]) -> Call:
        _refuse(body)
        is_stream = reading.is_stream(body, ())
        if is_stream and _LOGPROBS in listed(body.get("include")):
            raise Refused(Reason.STREAM)
        content = reading.content_fields(body, TRANSPORT)
        content |= {
            name: type(body[name])()
            for name in responses_answer.ECHOED
            if name in body and name not in content
        }
        return Call(
            body,
            (canonical(content),),
            1,
            False,
            stream=StreamOptions() if is_stream else None,
            is_seeded=body.get("seed") is not None,
            is_greedy=reading.is_greedy(body),
            is_verbatim=False,
            may_be_kept=body.get("store") is not False,
        )

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        return responses_answer.split(answer)

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        answer = responses_answer.own(orjson.loads(samples[0][0]), call.body)
        if answer.get("tools") == [] and call.body.get("tools"):
            answer["tools"] = call.body["tools"]  # SGLang's streams of gpt-oss tell none
        return judging.dump(answer)

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        return judging.dump(
            {
                "id": f"resp_{rid}",
                "object": "response",
                "created_at": int(now),
                "model": call.body.get("model"),
                "output": [],
                "status": "failed",
                "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0},
                "error": {"code": "server_error", "message": "Generation aborted"},
                "incomplete_details": None,
            }
        )

    def record(self, call: Call, sent: UpstreamCall) -> base.Recorder:
        return responses_stream.Recorder(call.body)

    def rename(self, event: Any, call: Call) -> bool:
        said = event["response"]
        event["response"] = responses_answer.own(said, call.body)
        return bool(event["response"] != said)

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        return responses_script.script(samples[0][0], call.body)


def _refuse(body: dict[str, Any]) -> None:
    """Raises `Refused` for a body that is not looked up."""
    reading.refuse_unstorable(body)
    said = body.get("input")
    if not isinstance(said, str | list) or said == []:
        raise Refused(Reason.MALFORMED)
    if reading.given(body, ("conversation", "prompt", "request_id")) or body.get("background"):
        raise Refused(Reason.STATE)
    if not all(map(_is_of_client, responses_answer.declared(body))):
        raise Refused(Reason.SERVER_TOOLS)
    for item in listed(said):
        if isinstance(item, dict):
            _refuse_item(item)


def _refuse_item(item: dict[str, Any]) -> None:
    """Raises `Refused` for an item that refers to something outside of the body."""
    if item.get("type") == "item_reference" or item.keys() == {"id"}:
        raise Refused(Reason.STATE)
    parts = [*listed(item.get("content")), *listed(item.get("output")), item.get("output")]
    if any(isinstance(part, dict) and part.get("file_id") is not None for part in parts):
        raise Refused(Reason.MEDIA)
    reading.refuse_media([{"content": parts}])


def _is_of_client(tool: Any) -> bool:
    """Whether a tool is one that clients use, and so are those in it."""
    if not isinstance(tool, dict):
        return True  # upstream's to refuse
    is_own = tool.get("type", "function") in _OF_CLIENTS
    return is_own and all(map(_is_of_client, listed(tool.get("tools"))))


RESPONSES = Responses()

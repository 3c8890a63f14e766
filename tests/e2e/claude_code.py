"""A conversation of Claude Code, as it is on the wire: a script of what it asks in a session, and
of what it sends with it, as in what others have published of the releases 2.1.37 to 2.1.280.

It knows nothing of a cache. What it takes from an answer is what the next call shows: the blocks of
the assistant, which go into the messages as they came, with their ids, and the id of the message.
"""

from __future__ import annotations

import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.e2e.programs import Json, named_events

_BETAS = (
    "claude-code-20250219,interleaved-thinking-2025-05-14,thinking-token-count-2026-05-13,"
    "context-management-2025-06-27,prompt-caching-scope-2026-01-05,advanced-tool-use-2025-11-20,"
    "effort-2025-11-24,extended-cache-ttl-2025-04-11,cache-diagnosis-2026-04-07"
)
_IDENTITY = "You are Claude Code, Anthropic's official CLI for Claude."
_REMINDER = "<system-reminder>\nToday's date is 2030-01-02.\n</system-reminder>"
_CACHED: Json = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
_TITLE: Json = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 8}},
    "required": ["title"],
    "additionalProperties": False,
}
_SECONDS = 120


def _text(said: str, **more: Any) -> Json:
    return {"type": "text", "text": said, **more}


def _tool(name: str, argument: str) -> Json:
    return {
        "name": name,
        "description": f"{name}.",
        "input_schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {argument: {"type": "string", "enum": ["a.py", "b.py"]}},
            "required": [argument],
            "additionalProperties": False,
        },
    }


@dataclass
class Session:
    """One start of Claude Code, with ids of its own; `counts` are the tokens that it has counted,
    and `heard` are the messages that it was answered."""

    url: str
    task: str
    tools: int = 20
    thinks: bool = True
    has_billing: bool = True
    """Whether it is started without CLAUDE_CODE_ATTRIBUTION_HEADER=0."""
    model: str = "claude-opus-4-8"
    tokens: int = 24
    heard: list[Json] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._id = str(uuid.uuid4())
        self._http = requests.Session()
        self._http.trust_env = False
        self._tools = [_tool(f"Tool{k}", "file_path") for k in range(self.tools)]

    def run(self) -> None:
        """All of it: the first looks, the title beside the first turn, and turns with tools."""
        self._http.head(self.url, timeout=_SECONDS)
        self._ask(max_tokens=1, messages=[{"role": "user", "content": "quota"}])
        self._count()
        self._title()
        self._turns()
        self._http.close()

    def _count(self) -> None:
        """What its tools take of the context, each for itself, all at once."""
        hello = [{"role": "user", "content": "foo"}]
        bodies = [{"messages": hello, "tools": [tool]} for tool in self._tools]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda body: self._post("/count_tokens", body), bodies))
        self.counts = [answer.json()["input_tokens"] for answer in answers]

    def _title(self) -> None:
        self._ask(
            messages=[{"role": "user", "content": [_text(self.task)]}],
            system=[*self._billing(), _text(_IDENTITY), _text("Name this session.")],
            tools=[],
            temperature=1,
            output_config={"format": {"type": "json_schema", "schema": _TITLE}},
            stream=True,
        )

    def _turns(self) -> None:
        """It reads a file, is told what is in it, and says what it will do."""
        messages = [{"role": "user", "content": [_text(_REMINDER), _text(self.task)]}]
        previous = None
        for turn in range(3):
            said = self._ask(
                messages=_with_mark(messages),
                system=[
                    *self._billing(),
                    _text(_IDENTITY, **_CACHED),
                    _text("Rules: be careful.", **_CACHED),
                ],
                tools=self._tools,
                stream=True,
                diagnostics={"previous_message_id": previous},
                context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
                output_config={"effort": "medium"},
                **({"thinking": {"type": "adaptive", "display": "omitted"}} if self.thinks else {}),
            )
            previous = said["id"]
            blocks, results = _continued(said["content"], turn)
            messages += [
                {"role": "assistant", "content": blocks},
                {"role": "user", "content": [*results, _text(_REMINDER)]},
            ]

    def _billing(self) -> list[Json]:
        """A line that is another one in each call."""
        dice = uuid.uuid4().hex
        line = f"cc_version=2.1.280.{dice[:3]}; cc_entrypoint=cli; cch={dice[-5:]}; "
        prompt = f"cc_prompt_id={uuid.uuid4()};"
        return [_text(f"x-anthropic-billing-header: {line}{prompt}")] if self.has_billing else []

    def _ask(self, **body: Any) -> Json:
        answer = self._post("", {"max_tokens": self.tokens, **body, "metadata": self._metadata()})
        said = _assembled(answer) if body.get("stream") else answer.json()
        self.heard.append(said)
        return said

    def _metadata(self) -> Json:
        who = {"device_id": "0" * 64, "account_uuid": "", "session_id": self._id}
        return {"user_id": json.dumps(who)}

    def _post(self, path: str, body: Json) -> requests.Response:
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip, deflate, br, zstd",
            "Authorization": "Bearer none",
            "Content-Type": "application/json",
            "User-Agent": "claude-cli/2.1.280 (external, cli)",
            "X-Claude-Code-Session-Id": self._id,
            "X-Stainless-Arch": "x64",
            "X-Stainless-Lang": "js",
            "X-Stainless-OS": "Linux",
            "X-Stainless-Package-Version": "0.112.1",
            "X-Stainless-Retry-Count": "0",
            "X-Stainless-Runtime": "node",
            "X-Stainless-Runtime-Version": "v24.3.0",
            "X-Stainless-Timeout": "600",
            "anthropic-beta": _BETAS,
            "anthropic-dangerous-direct-browser-access": "true",
            "anthropic-version": "2023-06-01",
            "x-app": "cli",
            "x-client-request-id": str(uuid.uuid4()),
        }
        answer = self._http.post(
            f"{self.url}/v1/messages{path}?beta=true",
            json={"model": self.model, **body},
            headers=headers,
            stream=bool(body.get("stream")),
            timeout=_SECONDS,
        )
        assert answer.status_code == 200, answer.text
        return answer


def _with_mark(messages: list[Json]) -> list[Json]:
    """The last block of the last message is where the server is to keep its prefix."""
    *before, last = messages
    *blocks, block = last["content"]
    return [*before, {**last, "content": [*blocks, {**block, **_CACHED}]}]


def _continued(said: list[Json], turn: int) -> tuple[list[Json], list[Json]]:
    """What goes into the messages: what the assistant has said, and the results of its tools. Where
    the model of a test has called none, it is taken to have read a file."""
    blocks = [block for block in said if block.get("text") != ""]
    calls = [block for block in blocks if block["type"] == "tool_use"]
    if not calls:
        read = {"name": "Tool0", "input": {"file_path": "a.py"}}
        calls = [{"type": "tool_use", "id": f"toolu_{turn}", **read}]
        blocks += calls
    results = [
        {
            "type": "tool_result",
            "tool_use_id": call["id"],
            "content": [_text("1\tx = 1")] if turn else "     1\tx = 1",
            "is_error": False,
        }
        for call in calls
    ]
    return blocks, results


def _assembled(answer: requests.Response) -> Json:
    """The message that a stream comes to, as a client takes it: event by event, strictly."""
    message: Json = {}
    kinds: list[str] = []
    for event in named_events(answer):
        name = event["type"]
        kinds.append(name)
        if name == "message_start":
            message = event["message"]
        elif name == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append({**event["content_block"], "partial": ""})
        elif name == "content_block_delta":
            _add(message["content"][event["index"]], event["delta"])
        elif name == "content_block_stop":
            block = message["content"][event["index"]]
            partial = block.pop("partial")
            block |= {"input": json.loads(partial)} if partial else {}
        elif name == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    return message


def _add(block: Json, delta: Json) -> None:
    kind = delta["type"]
    name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial"}
    if kind == "signature_delta":
        block["signature"] = delta["signature"]
    else:
        block[name[kind]] += delta["partial_json" if kind == "input_json_delta" else name[kind]]

"""A conversation of Codex, as it is on the wire: a script of what it asks in a session, and of what
it sends with it, as in its source and in what others have published of the releases up to 0.162.

It knows nothing of a cache. What it takes from an answer is what the next call shows: the items
that came, without their ids, and the results of the tools that they call.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field

import requests

from tests.e2e.programs import Json, named_events

_SECONDS = 120


def _said(role: str, text: str) -> Json:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": role, "content": content}


def _tool(name: str, argument: str) -> Json:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "name": name,
        "description": f"{name}.",
        "strict": False,
        "parameters": parameters,
    }


_GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/s"}
_TOOLS: list[Json] = [
    _tool("exec_command", "cmd"),
    _tool("update_plan", "explanation"),
    {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": _GRAMMAR},
    {"type": "namespace", "name": "agents", "description": "", "tools": [_tool("spawn", "task")]},
]


@dataclass
class Session:
    """One start of Codex, with ids of its own; `heard` are the events of its calls, but for what
    they say of the call itself."""

    url: str
    task: str
    model: str
    more: Json = field(default_factory=dict)
    """What a test's model needs to come to an end."""
    heard: list[list[Json]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._id = str(uuid.uuid4())
        self._http = requests.Session()
        self._http.trust_env = False

    def run(self) -> None:
        """A turn in which it runs a command, and goes on with what that printed."""
        said = [
            _said("developer", "<permissions instructions>be careful</permissions instructions>"),
            _said("user", "<environment_context>\n  <cwd>/src</cwd>\n</environment_context>"),
            _said("user", self.task),
        ]
        for turn in range(3):
            said += _continued(self._ask(said), turn)
        self._http.close()

    def _ask(self, said: list[Json]) -> list[Json]:
        """The items of an answer."""
        turn = {"session_id": self._id, "thread_id": self._id, "turn_id": str(uuid.uuid4())}
        body = {
            "model": self.model,
            "instructions": "You are Codex.",
            "input": said,
            "tools": _TOOLS,
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "stream": True,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": self._id,
            "client_metadata": {**turn, "x-codex-turn-metadata": json.dumps(turn)},
            **self.more,
        }
        headers = {
            "Accept": "text/event-stream",
            "Authorization": "Bearer none",
            "User-Agent": "codex_cli_rs/0.162.1 (Debian 12; x86_64) xterm",
            "originator": "codex_cli_rs",
            "session-id": self._id,
            "thread-id": self._id,
            "x-client-request-id": self._id,
            "x-codex-turn-metadata": json.dumps(turn),
            "x-codex-window-id": f"{self._id}:0",
        }
        with self._http.post(
            f"{self.url}/v1/responses", json=body, headers=headers, stream=True, timeout=_SECONDS
        ) as answer:
            assert answer.status_code == 200, answer.text
            events = list(named_events(answer))
        kinds = [event["type"] for event in events]
        assert kinds[0] == "response.created"
        assert kinds[-1] in ("response.completed", "response.incomplete")
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["response"].get("prompt_cache_key") in (None, self._id)
        self.heard.append([_without_own(event) for event in events])
        return [event["item"] for event in events if event["type"] == "response.output_item.done"]


def _without_own(event: Json) -> Json:
    """An event without what it repeats of this session."""
    response = event.get("response")
    return {**event, "response": {**response, "prompt_cache_key": None}} if response else event


def _continued(items: list[Json], turn: int) -> list[Json]:
    """What goes into the next call: what came, and the results of tools. Where the model of a test
    has called none, it is taken to have run a command."""
    found = [{name: value for name, value in item.items() if name != "id"} for item in items]
    calls = [item for item in found if item["type"] == "function_call"]
    if not calls:
        arguments = {"name": "exec_command", "arguments": '{"cmd":"ls"}'}
        calls = [{"type": "function_call", "call_id": f"call_{turn}", **arguments}]
        found += calls
    results = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "a.py\nb.py"}
        for call in calls
    ]
    return found + results

"""OpenAI's `/v1/responses`, made of the simulated chat as SGLang makes it of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sglang_cached_addon.simulator import chat
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.sample import Api, Ask, Run
from tests.simulator import handler as handlers
from tests.simulator.checks import missing

PATH = handlers.RESPONSES
_SAME = ("temperature", "top_p", "top_k", "stream", "stop")
_STATUSES = {"length": "incomplete", "abort": "failed"}


def _read(body: Json) -> Ask:
    if "model" not in body:
        raise missing("model")
    asked = {name: body[name] for name in _SAME if body.get(name) is not None}
    if body.get("max_output_tokens") is not None:
        asked["max_tokens"] = body["max_output_tokens"] - 2
    said = body["input"]
    messages = [{"role": "system", "content": body.get("instructions")}] * ("instructions" in body)
    messages += said if isinstance(said, list) else [{"role": "user", "content": said}]
    functions = [
        {"name": tool["name"], "parameters": tool.get("parameters", {})}
        for tool in body.get("tools") or ()
        if tool.get("type", "function") == "function"
    ]
    if functions:
        asked["tools"] = [{"type": "function", "function": function} for function in functions]
        choice = body.get("tool_choice", "auto")
        asked["tool_choice"] = "required" if isinstance(choice, dict) else choice
    thinks = (body.get("reasoning") or {}).get("effort", "none") != "none"
    kwargs = {"enable_thinking": thinks}
    ask = chat.CHAT.read({**asked, "messages": messages, "chat_template_kwargs": kwargs})
    ask.body["said"] = body
    return ask


def _response(ask: Ask, run: Run, output: list[Json], status: str) -> Json:
    body = ask.body["said"]
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    error = {"code": "server_error", "message": "Generation aborted"}
    is_text = bool(output) and all(item["type"] == "message" for item in output)
    usage = {
        "input_tokens": run.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": run.count,
        "output_tokens_details": {"reasoning_tokens": run.reasoning},
        "total_tokens": run.prompt_tokens + run.count,
    }
    return {
        "id": f"resp_{run.rid}",
        "object": "response",
        "created_at": ask.created,
        "model": body["model"],
        "output": output,
        "status": status,
        "usage": None if status == "in_progress" else usage,
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": list(map(_tool, body.get("tools") or ())),
        "error": error if status == "failed" else None,
        "incomplete_details": reason,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": (body.get("reasoning") or {}).get("effort"), "summary": None},
        "store": body.get("store", True),
        "temperature": _float(body.get("temperature")),
        "text": _format(body["text"]) if body.get("text") else _TEXT if is_text else None,
        "top_p": _float(body.get("top_p")),
        "truncation": body.get("truncation", "disabled"),
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


_TEXT = {"format": {"type": "text"}}


def _format(text: Json) -> Json:
    said = text.get("format", {})
    order = sorted(said, key=lambda name: ("name", "schema", "type", "strict").index(name))
    return {"format": {name: said[name] for name in order}}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _tool(tool: Json) -> Json:
    names = ("type", "name", "description", "parameters", "strict", "tools", "defer_loading",
             "format")  # fmt: skip
    return {name: tool.get(name, False if name == "strict" else None) for name in names} | tool


def _item(kind: str, run: Run, text: str, **more: Any) -> Json:
    """An item that is over."""
    if kind == "reasoning":
        content = [{"text": text, "type": "reasoning_text"}]
        head = {"id": f"rs_{run.rid}", "summary": [], "type": kind, "content": content}
        return {**head, "encrypted_content": None, "status": "completed"}
    if kind == "message":
        part = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
        head = {"id": f"msg_{run.rid}", "content": [part], "role": "assistant"}
        return {**head, "status": "completed", "type": kind, "phase": "final_answer"}
    named = {"name": run.tool, "type": kind, "id": f"fc_{run.rid[:8]}", "status": "completed"}
    return {"arguments": text, "call_id": run.call_id, **named}


def _answer(ask: Ask, runs: list[Run]) -> Json:
    (run,), (choice,) = runs, chat.CHAT.answer(ask, runs)["choices"]
    said, output = choice["message"], []
    if said["reasoning_content"]:
        output.append(_item("reasoning", run, said["reasoning_content"]))
    if said["content"]:
        output.append(_item("message", run, said["content"]))
    for call in said.get("tool_calls", ()):
        output.append(_item("function_call", run, call["function"]["arguments"]))
    return _response(ask, run, output, _STATUSES.get(choice["finish_reason"], "completed"))


_STEMS = {"reasoning": "reasoning_text", "message": "output_text",
          "function_call": "function_call_arguments"}  # fmt: skip


class _Stream:
    """What was said so far of one run: the type and the text of each item, the last one open."""

    def __init__(self, ask: Ask, run: Run) -> None:
        self._ask, self._run = ask, run
        self._said: list[tuple[str, str]] = []
        self._count = 0

    @property
    def items(self) -> list[Json]:
        return [_item(kind, self._run, text) for kind, text in self._said]

    def lifecycle(self, status: str) -> Json:
        output = [] if status in ("created", "in_progress") else self.items
        known = "in_progress" if status == "created" else status
        response = _response(self._ask, self._run, output, known)
        return self._numbered({"type": f"response.{status}", "response": response})

    def _numbered(self, event: Json) -> Json:
        self._count += 1
        return {**event, "sequence_number": self._count - 1}

    def _event(self, kind: str, **members: Any) -> Json:
        """An event about the last item."""
        item = self.items[-1]
        index = {"output_index": len(self._said) - 1}
        if "item" not in members:
            index["item_id"] = item["id"]
        if "text" in kind or "part" in kind:
            index["content_index"] = 0
        event = self._numbered({**members, **index})
        return {**dict(sorted(event.items())), "type": f"response.{kind}"}

    def says(self, kind: str, text: str) -> Iterator[Json]:
        if not self._said or self._said[-1][0] != kind:
            yield from self.ends()
            self._said.append((kind, ""))
            yield from self._begins(kind)
        self._said[-1] = (kind, self._said[-1][1] + text)
        if text:
            yield self._event(f"{_STEMS[kind]}.delta", delta=text, **_logprobs(kind))

    def _begins(self, kind: str) -> Iterator[Json]:
        item = {**self.items[-1], "status": "in_progress"}
        part = (item.get("content") or [None])[0]
        yield self._event("output_item.added", item=item | ({"content": []} if part else {}))
        if part:
            yield self._event("content_part.added", part=part)

    def ends(self) -> Iterator[Json]:
        if not self._said:
            return
        (kind, text), item = self._said[-1], self.items[-1]
        if kind == "function_call":
            yield self._event(f"{_STEMS[kind]}.done", arguments=text, name=self._run.tool)
        else:
            yield self._event(f"{_STEMS[kind]}.done", text=text, **_logprobs(kind))
            yield self._event("content_part.done", part=item["content"][0])
        yield self._event("output_item.done", item=item)


def _logprobs(kind: str) -> Json:
    return {"logprobs": []} if kind == "message" else {}


def _events(ask: Ask, run: Run) -> Iterator[Json]:
    stream: _Stream = ask.body.setdefault("state", _Stream(ask, run))
    if run.silent:
        yield from map(stream.lifecycle, ("created", "in_progress"))
    for event in chat.CHAT.events(ask, run):
        said = event["choices"][0]["delta"]
        for kind, name in (("reasoning", "reasoning_content"), ("message", "content")):
            if said.get(name):
                yield from stream.says(kind, said[name])
        for call in said.get("tool_calls") or ():
            yield from stream.says("function_call", call["function"]["arguments"])


def _last_events(ask: Ask, spoken: list[Run]) -> Iterator[Json]:
    for run in spoken:
        stream: _Stream = ask.body["state"]
        yield from stream.ends()
        reason = chat.CHAT.answer(ask, [run])["choices"][0]["finish_reason"]
        yield stream.lifecycle(_STATUSES.get(reason, "completed"))


RESPONSES = Api(_read, _answer, _events, _last_events)

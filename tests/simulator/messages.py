"""Anthropic's `/v1/messages`, made of the simulated chat as SGLang makes it of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from sglang_cached_addon.simulator import chat
from sglang_cached_addon.simulator.handler import Routes
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.refusals import Flaw
from sglang_cached_addon.simulator.sample import Api, Ask, Run
from sglang_cached_addon.simulator.words import token_ids
from tests.simulator import handler as handlers
from tests.simulator.checks import missing
from tests.simulator.handler import Handler

PATH = handlers.MESSAGES
_SAME = ("model", "temperature", "top_p", "top_k", "stream", "max_tokens")
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def _read(body: Json) -> Ask:
    for name in ("model", "max_tokens", "messages"):
        if name not in body:
            raise Flaw(f"{name}: Field required")
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    asked = {name: body[name] for name in _SAME if name in body}
    asked |= {"messages": system + body["messages"], "stop": body.get("stop_sequences")}
    if tools := [tool for tool in body.get("tools", ()) if "input_schema" in tool]:
        functions = [{"name": tool["name"], "parameters": tool["input_schema"]} for tool in tools]
        asked["tools"] = [{"type": "function", "function": function} for function in functions]
        kind = body.get("tool_choice", {}).get("type", "auto")
        asked["tool_choice"] = "required" if kind in ("any", "tool") else kind
    thinks = body.get("thinking", {}).get("type", "disabled") != "disabled"
    return chat.CHAT.read({**asked, "chat_template_kwargs": {"enable_thinking": thinks}})


def _message(ask: Ask, run: Run, content: list[Json], tokens: int, **more: Any) -> Json:
    head = {"id": f"msg_{run.rid}", "type": "message", "role": "assistant", "content": content}
    usage = {"input_tokens": run.prompt_tokens, "output_tokens": tokens}
    return {**head, "model": ask.model, **more, "usage": usage}


def _reason(choice: Json) -> Json:
    return {"stop_reason": _REASONS.get(choice["finish_reason"], "end_turn")}


def _answer(ask: Ask, runs: list[Run]) -> Json:
    (run,), (choice,) = runs, chat.CHAT.answer(ask, runs)["choices"]
    said, content = choice["message"], []
    if said["reasoning_content"]:
        content.append({"type": "thinking", "thinking": said["reasoning_content"]})
    if said["content"]:
        content.append({"type": "text", "text": said["content"]})
    for call in said.get("tool_calls", ()):
        function = call["function"]
        given = {"name": function["name"], "input": orjson.loads(function["arguments"])}
        content.append({"type": "tool_use", "id": call["id"], **given})
    content = content or [{"type": "text", "text": ""}]
    return _message(ask, run, content, run.count, **_reason(choice))


def _events(ask: Ask, run: Run) -> Iterator[Json]:
    # The types of the blocks so far; the last one is open.
    kinds = ask.body.setdefault("blocks", [])
    if run.silent:
        yield {"type": "message_start", "message": _message(ask, run, [], 0)}
    for event in chat.CHAT.events(ask, run):
        said = event["choices"][0]["delta"]
        for kind, name, text in (("thinking", "thinking", said.get("reasoning_content")),
                                 ("text", "text", said.get("content"))):  # fmt: skip
            if text:
                yield from _begin(kinds, kind, {name: ""})
                yield _delta(kinds, {"type": f"{kind}_delta", name: text})
        for call in said.get("tool_calls") or ():
            function = call["function"]
            if function["name"]:
                first = {"id": call["id"], "name": function["name"], "input": {}}
                yield from _begin(kinds, "tool_use", first)
            if function["arguments"]:
                said = {"type": "input_json_delta", "partial_json": function["arguments"]}
                yield _delta(kinds, said)


def _begin(kinds: list[str], kind: str, first: Json) -> Iterator[Json]:
    if kinds[-1:] == [kind]:
        return
    if kinds:
        yield {"type": "content_block_stop", "index": len(kinds) - 1}
    kinds.append(kind)
    block = {"type": kind, **first}
    yield {"type": "content_block_start", "index": len(kinds) - 1, "content_block": block}


def _delta(kinds: list[str], delta: Json) -> Json:
    return {"type": "content_block_delta", "index": len(kinds) - 1, "delta": delta}


def _last_events(ask: Ask, spoken: list[Run]) -> Iterator[Json]:
    for run in spoken:
        if kinds := ask.body.get("blocks"):
            yield {"type": "content_block_stop", "index": len(kinds) - 1}
        delta = _reason(chat.CHAT.answer(ask, [run])["choices"][0])
        yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": run.count}}


MESSAGES = Api(_read, _answer, _events, _last_events)


async def count_tokens(handler: Handler) -> None:
    body = handler.document()
    if not body.get("messages"):
        raise missing("messages")
    ask = _read({"max_tokens": 1, **body})
    handler.reply({"input_tokens": sum(len(token_ids(prompt)) for prompt in ask.prompts)})


ROUTES: Routes = {f"{PATH}/count_tokens": (("POST",), count_tokens)}

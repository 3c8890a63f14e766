"""`/v1/chat/completions`: its body read and checked, its answers and stream events.

Pure but for clocks and new ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from sglang_cached_addon.simulator import openai
from sglang_cached_addon.simulator.meta import meta_info
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.refusals import Flaw
from sglang_cached_addon.simulator.sample import Api, Ask, Run
from sglang_cached_addon.simulator.words import scored

PATH = "/v1/chat/completions"
_CHUNK = "chat.completion.chunk"


def read(body: Json) -> Ask:
    if not body["messages"]:
        raise Flaw("Messages cannot be empty.")
    if body.get("tool_choice") == "required" and not body.get("tools"):
        raise Flaw("Tools cannot be empty if tool choice is set to required.")
    if body.get("return_meta_info") and body.get("stream"):
        raise Flaw("return_meta_info is not supported with streaming.", "BadRequest")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    params, n = openai.sampling(body, 32 if limit is None else int(limit))
    thinks = (body.get("chat_template_kwargs") or {}).get("enable_thinking") is True
    model = str(body.get("model", "default"))
    return Ask(body, [_render(body)], [params], False, n, model=model, chat=True, thinks=thinks)


def _render(body: Json) -> str:
    """The prompt that a chat template would make of a request."""
    parts = []
    for message in body["messages"]:
        content = message.get("content") or ""
        text = content if isinstance(content, str) else orjson.dumps(content).decode()
        parts.append(f"<{message.get('role')}> {text}")
    for name in ("tools", "response_format", "chat_template_kwargs"):
        if body.get(name):
            parts.append(orjson.dumps(body[name]).decode())
    return "\n".join([*parts, "<assistant>"])


def _logprobs(ask: Ask, run: Run, since: int = 0) -> Json | None:
    if not ask.body.get("logprobs"):
        return None
    top = int(ask.body.get("top_logprobs") or 0)
    return {"content": scored(run.tokens[: run.count], run.ids, since, top)}


def _split(ask: Ask, run: Run) -> int:
    """Where the reasoning that is told apart ends."""
    return run.thinking if ask.body.get("separate_reasoning", True) else 0


def _call(name: str | None, call_id: str | None, text: str) -> list[Json]:
    function = {"name": name, "arguments": text}
    return [{"id": call_id, "index": 0, "type": "function", "function": function}]


def _finish(run: Run) -> Json:
    """The end of a choice; a finished call is an end of its own kind."""
    found = openai.finish(run)
    return {**found, "finish_reason": "tool_calls"} if _called(run) else found


def _called(run: Run) -> bool:
    return bool(run.tool) and run.reason["type"] == "stop"


def _choice(ask: Ask, run: Run) -> Json:
    """A whole choice."""
    split = _split(ask, run)
    message: Json = {
        "role": "assistant",
        "content": "" if run.tool else run.said(split, run.count),
        "reasoning_content": run.said(0, split) or None,
    }
    end = _finish(run)
    if _called(run):
        message["tool_calls"] = _call(run.tool, run.call_id, run.text)
        end["matched_stop"] = None
    choice = {"index": run.index, "message": message, "logprobs": _logprobs(ask, run), **end}
    if ask.body.get("return_meta_info"):
        choice["meta_info"] = meta_info(ask, run)
    return choice


def answer(ask: Ask, runs: list[Run]) -> Json:
    return openai.answer(ask, runs, "chat.completion", _choice)


def _parses_calls(ask: Ask) -> bool:
    """Whether SGLang looks for calls in what is said."""
    return bool(ask.body.get("tools")) and ask.body.get("tool_choice") != "none"


def _deltas(ask: Ask, run: Run) -> Iterator[Json]:
    """What the tokens since the last event add to the message."""
    split = _split(ask, run)
    if thought := run.said(run.sent, min(run.count, split)):
        yield {"reasoning_content": thought}
    text = run.said(max(run.sent, split), run.count)
    if not _parses_calls(ask):
        if text:
            yield {"reasoning_content": None, "content": text}
        return
    parsed = {"role": None, "content": None, "reasoning_content": None}
    if run.tool and run.silent:
        yield {**parsed, "tool_calls": _call(run.tool, run.call_id, "")}
    if text:
        said = {"tool_calls": _call(None, None, text)} if run.tool else {"content": text}
        yield {**parsed, **said}


def _event(ask: Ask, run: Run, delta: Json, logprobs: Json | None, **more: Any) -> Json:
    choice = {"index": run.index, "delta": delta, "logprobs": logprobs}
    choices = [{**choice, "finish_reason": None, "matched_stop": None}]
    return {**openai.envelope(ask, run.rid, _CHUNK, choices), **more}


def events(ask: Ask, run: Run) -> Iterator[Json]:
    if run.silent:
        role = {"reasoning_content": None, "role": "assistant", "content": ""}
        yield _event(ask, run, role, None)
    counts = openai.usage_so_far(ask, run)
    told = {"usage": counts} if counts else {}
    logprobs = _logprobs(ask, run, run.sent) if run.count > run.sent else None
    for delta in _deltas(ask, run):
        if "role" in delta:  # what the parser of calls lets through has no log-probabilities
            yield _event(ask, run, delta, None, usage=counts)
        else:
            yield _event(ask, run, delta, logprobs, **told)
            logprobs = None
    if logprobs and (run.thinking or _parses_calls(ask)):  # else they are lost
        yield _event(ask, run, {"reasoning_content": None}, logprobs, **told)


def last_events(ask: Ask, spoken: list[Run]) -> Iterator[Json]:
    for run in spoken:
        if run.over:
            choice = {"index": run.index, "delta": {"reasoning_content": None}, "logprobs": None}
            yield openai.envelope(ask, spoken[-1].rid, _CHUNK, [{**choice, **_finish(run)}])
    yield from openai.usage_events(ask, spoken, _CHUNK, nulls=True)


CHAT = Api(read, answer, events, last_events)

"""The sampling routes, with what can go wrong on them, and samples that never began."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sglang_cached_addon.simulator import generate, sampling
from sglang_cached_addon.simulator.handler import JSON
from sglang_cached_addon.simulator.jobs import Left
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.refusals import error_event, openai_error
from sglang_cached_addon.simulator.sample import Ask
from tests.simulator import checks, messages, responses
from tests.simulator.handler import Handler
from tests.simulator.jobs import Job, Run
from tests.simulator.profile import Fault

_BODIES: dict[Fault | None, bytes] = {
    Fault.NOT_JSON: b"not json",
    Fault.ERROR_BODY: b'{"error":{"message":"simulated"}}',
}


def _answer(ask: Ask, runs: list[Run]) -> Any:
    answer = generate.answer(ask, runs)
    for item, run in zip(answer if isinstance(answer, list) else [answer], runs, strict=True):
        _tell_of_queued(ask, run, item)
    return answer


def _events(ask: Ask, run: Run) -> Iterator[Json]:
    for item in generate.events(ask, run):
        _tell_of_queued(ask, run, item)
        yield item


def _tell_of_queued(ask: Ask, run: Run, item: Json) -> None:
    """Little is known of a sample that was aborted before it began."""
    if not run.queued:
        return
    names = ["input_token_logprobs", "output_token_logprobs", "output_token_logprobs_length"]
    if int(ask.item("top_logprobs_num", run, 0)):
        names += ["input_top_logprobs", "output_top_logprobs"]
    logprobs: Json = {name: 0 if name.endswith("_length") else [] for name in names}
    stamp = {k: v for k, v in item["meta_info"].items() if k == "response_sent_to_client_ts"}
    item["meta_info"] = {
        "id": run.rid,
        "finish_reason": run.reason,
        "weight_version": run.version,
        "e2e_latency": time.perf_counter() - run.started,
        "weight_versions": run.weight_versions()[:1],
        **(logprobs if ask.item("return_logprob", run, False) else {}),
        "completion_tokens": 0,
        **stamp,
    }


_GENERATE = replace(generate.GENERATE, answer=_answer, events=_events)
APIS = {
    **sampling.APIS,
    generate.PATH: _GENERATE,
    messages.PATH: messages.MESSAGES,
    responses.PATH: responses.RESPONSES,
}


async def sample(handler: Handler) -> None:
    """A sampling call, which the next of the engine's faults spoils."""
    engine, path = handler.engine, handler.request.path
    fault = engine.faults.popleft() if engine.faults else None
    if fault is Fault.ERROR_503:
        raise checks.busy()
    if fault is Fault.UNAUTHORIZED:
        handler.unauthorized()
        return
    body = handler.document()
    try:
        if engine.profile.stream_response_default_include_usage:
            options = body.get("stream_options") or {}
            body = {**body, "stream_options": {**options, "include_usage": True}}
        checks.SCHEMA[path](body)
        ask = APIS[path].read(body)
        if fault is Fault.ERROR_EVENT and not ask.stream:
            raise checks.busy()
        if fault in _BODIES:
            if ask.stream:
                await handler.emit(_BODIES[fault])
                await handler.emit(b"[DONE]")
            else:
                handler.reply(_BODIES[fault], kind=JSON)
            return
        await handler.rest(None)
        job = engine.spoil(ask, fault)
    except ValueError as wrong:
        await sampling.refuse(handler, bool(body.get("stream")), wrong)
        return
    if ask.stream:
        _fail(handler, job)
    await sampling.deliver(handler, APIS[path], ask, job)


def _fail(handler: Handler, job: Job) -> None:
    """Let a stream end half way, if that is its fault."""

    async def cut() -> None:
        raise Left

    async def tell() -> None:
        message = "Request running timeout reached."
        body = openai_error(503, message, "SERVICE_UNAVAILABLE").body
        server_event = json.dumps({"error": body}).encode()  # with spaces, as SGLang has it
        is_native = handler.request.path == generate.PATH
        await handler.emit(error_event(message) if is_native else server_event)

    job.fail = {Fault.CUT: cut, Fault.ERROR_EVENT: tell}.get(job.fault)

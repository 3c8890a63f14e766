"""The sampling routes: a request read, its samples run, the answer or its stream sent, faults."""

from __future__ import annotations

import orjson
from tornado.iostream import StreamClosedError

from sglang_cached_addon.simulator import chat, completions, generate
from sglang_cached_addon.simulator.handler import JSON, Handler
from sglang_cached_addon.simulator.jobs import Job, Left
from sglang_cached_addon.simulator.profile import Fault
from sglang_cached_addon.simulator.refusals import Refusal, busy, error_event, openai_error
from sglang_cached_addon.simulator.sample import Api, Ask, Run

APIS: dict[str, Api] = {
    generate.PATH: generate.GENERATE,
    completions.PATH: completions.COMPLETIONS,
    chat.PATH: chat.CHAT,
}
_BODIES: dict[Fault | None, bytes] = {
    Fault.NOT_JSON: b"not json",
    Fault.ERROR_BODY: b'{"error":{"message":"simulated"}}',
}


async def sample(handler: Handler) -> None:
    engine, api = handler.engine, APIS[handler.request.path]
    fault = engine.faults.popleft() if engine.faults else None
    if fault is Fault.ERROR_503:
        raise busy()
    if fault is Fault.UNAUTHORIZED:
        handler.unauthorized()
        return
    body = handler.document()
    try:
        if handler.engine.profile.stream_response_default_include_usage:
            options = body.get("stream_options") or {}
            body = {**body, "stream_options": {**options, "include_usage": True}}
        ask = api.read(body)
        if fault is Fault.ERROR_EVENT and not ask.stream:
            raise busy()
        if fault in _BODIES:
            await _one(handler, ask.stream, _BODIES[fault])
            return
        await handler.rest(None)
        job = handler.job = engine.open(ask, fault)
    except ValueError as wrong:
        await _refuse(handler, bool(body.get("stream")), wrong)
        return
    try:
        await (_stream if ask.stream else _collect)(handler, api, ask, job, fault)
    except (Left, StreamClosedError):
        job.leave()
        _cut(handler, job)
    finally:
        engine.close(job, sent=False)


async def _refuse(handler: Handler, stream: bool, wrong: ValueError) -> None:
    """Tell a wrong value in the manner of the route."""
    if handler.request.path != generate.PATH:
        raise openai_error(400, str(wrong), getattr(wrong, "kind", "BadRequest"))
    if not stream:
        raise Refusal(400, {"error": {"message": str(wrong)}})
    await _one(handler, True, error_event(generate.PATH, str(wrong)))


async def _one(handler: Handler, stream: bool, body: bytes) -> None:
    """Answer 200 with one body, or with a stream of one event."""
    if not stream:
        handler.reply(body, kind=JSON)
        return
    await handler.emit(body)
    await handler.emit(b"[DONE]")


def _cut(handler: Handler, job: Job) -> None:
    """Close the socket where the answer stands."""
    handler.engine.close(job, sent=False)
    handler.detach().close()


async def _collect(handler: Handler, api: Api, ask: Ask, job: Job, fault: Fault | None) -> None:
    async for _ in job.steps(handler.engine.profile):
        pass
    body = orjson.dumps(api.answer(ask, job.runs))
    if fault is Fault.CUT:
        handler.set_header("Content-Type", JSON)
        handler.set_header("Content-Length", str(len(body)))
        handler.write(body[: len(body) // 2])
        await handler.flush()
        _cut(handler, job)
        return
    handler.engine.close(job, sent=True)  # before the client can look
    handler.reply(body, kind=JSON)


async def _stream(handler: Handler, api: Api, ask: Ask, job: Job, fault: Fault | None) -> None:
    profile = handler.engine.profile
    spoken: dict[int, Run] = {}  # in the order of their last events
    async for run in job.steps(profile):
        for event in api.events(ask, run, profile.incremental):
            await handler.emit(orjson.dumps(event))
        run.silent, run.sent = False, run.count
        spoken.pop(run.index, None)
        spoken[run.index] = run
        if fault is Fault.CUT and run.count >= job.turn:
            _cut(handler, job)
            return
        if fault is Fault.ERROR_EVENT and run.count >= job.turn:
            text = "Request running timeout reached."
            await handler.emit(error_event(handler.request.path, text))
            break
    for event in api.last_events(ask, list(spoken.values())):
        await handler.emit(orjson.dumps(event))
    handler.engine.close(job, sent=fault is not Fault.ERROR_EVENT)
    await handler.emit(b"[DONE]")

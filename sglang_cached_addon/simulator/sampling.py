"""The sampling routes: a request read, its samples run, the answer or its stream sent."""

from __future__ import annotations

from typing import Any

import orjson
from tornado.iostream import StreamClosedError

from sglang_cached_addon.simulator import chat, completions, generate
from sglang_cached_addon.simulator.handler import Handler
from sglang_cached_addon.simulator.jobs import Job, Left
from sglang_cached_addon.simulator.refusals import Flaw, Refusal, error_event, openai_error
from sglang_cached_addon.simulator.sample import Api, Ask, Run

APIS: dict[str, Api] = {
    generate.PATH: generate.GENERATE,
    completions.PATH: completions.COMPLETIONS,
    chat.PATH: chat.CHAT,
}


async def sample(handler: Handler) -> None:
    api, body = APIS[handler.request.path], handler.document()
    try:
        ask = api.read(body)
        job = handler.engine.open(ask)
    except ValueError as wrong:
        await refuse(handler, bool(body.get("stream")), wrong)
    except (AttributeError, LookupError, TypeError) as wrong:  # a value of another type
        await refuse(handler, bool(body.get("stream")), Flaw(f"Invalid request: {wrong}"))
    else:
        await deliver(handler, api, ask, job)


def is_probe(body: Any) -> bool:
    """Whether a body asks for as little as can be: its sender only asks if it may generate."""
    if not isinstance(body, dict):
        return False
    is_token = body.get("max_tokens") == 1
    messages = [{"role": "user", "content": "."}]
    is_openai = is_token and (body.get("prompt") == "." or body.get("messages") == messages)
    is_response = body.get("input") == "." and body.get("max_output_tokens") == 3
    return body.get("text") == [] or is_openai or is_response


async def refuse(handler: Handler, stream: bool, wrong: ValueError) -> None:
    """Tell a wrong value in the manner of the route."""
    if handler.request.path != generate.PATH:
        raise openai_error(400, str(wrong), getattr(wrong, "kind", "BadRequest"))
    if not stream:
        raise Refusal(400, {"error": {"message": str(wrong)}})
    await handler.emit(error_event(str(wrong)))
    await handler.emit(b"[DONE]")


async def deliver(handler: Handler, api: Api, ask: Ask, job: Job) -> None:
    """Send the answer as it is generated; a client that leaves ends its samples."""
    handler.job = job
    try:
        await (_stream if ask.stream else _collect)(handler, api, ask, job)
    except (Left, StreamClosedError):
        job.leave()
        handler.detach().close()
    finally:
        handler.engine.close(job, sent=False)


async def _collect(handler: Handler, api: Api, ask: Ask, job: Job) -> None:
    async for _ in job.steps(handler.engine.profile):
        pass
    body = orjson.dumps(api.answer(ask, job.runs))
    handler.engine.close(job, sent=not is_probe(ask.body))  # before the client can look
    await handler.send(body)


async def _stream(handler: Handler, api: Api, ask: Ask, job: Job) -> None:
    spoken: dict[int, Run] = {}  # in the order of their last events
    async for run in job.steps(handler.engine.profile):
        for event in api.events(ask, run):
            await handler.emit(orjson.dumps(event))
        run.silent, run.sent = False, run.count
        spoken.pop(run.index, None)
        spoken[run.index] = run
    for event in api.last_events(ask, list(spoken.values())):
        await handler.emit(orjson.dumps(event))
    handler.engine.close(job, sent=True)
    await handler.emit(b"[DONE]")

"""Streaming clients, each with its own way of reading a stream, and what they have heard.

A client takes (url, path, body) and adds what it always sends; it raises where the real one would,
or would misread.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import requests

from tests.e2e.calls import CHAT, COMPLETIONS, GENERATE

DONE = "data: [DONE]"
SECONDS = 60

Json = dict[str, Any]


@dataclass
class Choice:
    """One sample, put together from its events."""

    text: str = ""
    thought: str = ""
    calls: list[list[str]] = field(default_factory=list)  # name, arguments
    logprobs: list[Any] = field(default_factory=list)
    reason: str | None = None
    tokens: tuple[int, int] | None = None  # of prompt and completion; /generate only
    deltas: int = field(default=0, compare=False)  # events that brought text


@dataclass
class Heard:
    """An answer as a client has it."""

    choices: list[Choice]
    usage: Json | None
    cache: str | None  # the header X-Cache
    events: list[Any]  # as they came

    @property
    def texts(self) -> list[str]:
        return [choice.text for choice in self.choices]

    @property
    def deltas(self) -> list[int]:
        return [choice.deltas for choice in self.choices]


Client = Callable[[str, str, Json], Heard]


def hear(path: str, events: list[Json], cache: str | None, raw: list[Any] | None = None) -> Heard:
    """Put an answer together; one that is not streamed is its only event."""
    found: dict[int, Choice] = {}
    usage = None
    for event in events:
        assert "error" not in event, event
        assert usage is None, "the usage comes last"
        if path == GENERATE:
            _native(found.setdefault(event.get("index", 0), Choice()), event)
            continue
        for part in event["choices"]:
            _openai(found.setdefault(part["index"], Choice()), part)
        usage = event.get("usage")
    choices = [found[index] for index in range(len(found))]
    assert choices and all(choice.reason for choice in choices)
    # SGLang leaves out what is null in one place and not in another
    usage = usage and {name: value for name, value in usage.items() if value is not None}
    return Heard(choices, usage, cache, events if raw is None else raw)


def _native(choice: Choice, item: Json) -> None:
    """Texts and logprobs are whole in every event."""
    assert choice.reason is None and item["text"].startswith(choice.text)
    choice.deltas += item["text"] != choice.text
    meta = item["meta_info"]
    choice.text = item["text"]
    choice.tokens = (meta["prompt_tokens"], meta["completion_tokens"])
    choice.logprobs = meta.get("output_token_logprobs", [])
    choice.reason = meta["finish_reason"] and meta["finish_reason"]["type"]


def _openai(choice: Choice, part: Json) -> None:
    """A part of a choice, or all of it."""
    assert choice.reason is None
    delta = part.get("delta") or part.get("message") or {"content": part.get("text")}
    text = delta.get("content") or ""
    choice.deltas += bool(text)
    choice.text += text
    choice.thought += delta.get("reasoning_content") or ""
    for call in delta.get("tool_calls") or []:
        if call["index"] == len(choice.calls):
            choice.calls.append(["", ""])
        told = choice.calls[call["index"]]
        for place, name in enumerate(("name", "arguments")):
            told[place] += call["function"].get(name) or ""
    if logprobs := part.get("logprobs"):
        rows = zip(*(logprobs.get(name) or [] for name in _ROWS), strict=True)
        choice.logprobs += logprobs.get("content") or list(rows)
    choice.reason = part["finish_reason"]


_ROWS = ("tokens", "token_logprobs", "top_logprobs")


def whole(url: str, path: str, body: Json) -> Heard:
    """Not streamed."""
    answer = requests.post(url + path, json=body, timeout=SECONDS)
    answer.raise_for_status()
    return _whole(path, answer.json(), answer.headers.get("X-Cache"))


def _whole(path: str, answer: Any, cache: str | None) -> Heard:
    items = answer if isinstance(answer, list) else [answer]
    if path == GENERATE:
        items = [{**item, "index": index} for index, item in enumerate(items)]
    return hear(path, items, cache)


def _create(client: Any, path: str, body: Json) -> Any:
    """What OpenAI's client has no name for goes into `extra_body`."""
    extra = {name: body[name] for name in body.keys() & {"chat_template_kwargs", "regex"}}
    known = {name: value for name, value in body.items() if name not in extra}
    api = client.chat.completions if path == CHAT else client.completions
    return api.with_raw_response.create(**known, stream=True, extra_body=extra or None)


# The package takes more than a second to import, and one worker of several needs it.
# Nothing here speaks TLS, and reading the certificates of all the world takes 50 ms a client.
_OPENAI: Json = {"api_key": "none", "max_retries": 0, "timeout": SECONDS}


def openai_sync(url: str, path: str, body: Json) -> Heard:
    import openai

    with openai.OpenAI(
        base_url=f"{url}/v1", http_client=openai.DefaultHttpxClient(verify=False), **_OPENAI
    ) as client:
        raw = _create(client, path, body)
        events = [chunk.to_dict() for chunk in raw.parse()]
        return hear(path, events, raw.headers.get("X-Cache"))


def openai_async(url: str, path: str, body: Json) -> Heard:
    import openai

    async def ask() -> Heard:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
            **_OPENAI,
        ) as client:
            raw = await _create(client, path, body)
            events = [chunk.to_dict() async for chunk in raw.parse()]
            return hear(path, events, raw.headers.get("X-Cache"))

    return asyncio.run(ask())


_RUNTIME_PARAMS = {
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "max_new_tokens": 128,
    "min_new_tokens": 0, "n": 1, "stop": [], "stop_token_ids": [], "stop_regex": [],
    "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "frequency_penalty": 0.0,
    "presence_penalty": 0.0, "ignore_eos": False, "regex": None, "json_schema": None,
}  # fmt: skip


def _runtime_body(body: Json) -> Json:
    """All sampling parameters are always there."""
    return {**body, "sampling_params": {**_RUNTIME_PARAMS, **body["sampling_params"]}}


_RUNTIME_HEADERS = {"Content-Type": "application/json; charset=utf-8"}


def runtime_call(url: str, path: str, body: Json | None = None) -> tuple[Any, str | None]:
    """How sglang's RuntimeEndpoint calls where it does not stream: a connection a call."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, _RUNTIME_HEADERS)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        assert answer.status == 200
        return json.load(answer), answer.headers["X-Cache"]


def runtime_generate(url: str, path: str, body: Json) -> Heard:
    """RuntimeEndpoint.generate: not streamed."""
    return _whole(path, *runtime_call(url, path, _runtime_body(body)))


def runtime_stream(url: str, path: str, body: Json) -> Heard:
    """RuntimeEndpoint.generate_stream."""
    payload = {**_runtime_body(body), "stream": True}
    with requests.post(
        url + path, json=payload, headers=_RUNTIME_HEADERS, stream=True, timeout=SECONDS
    ) as answer:
        assert answer.status_code == 200
        events = list(_until_done(answer))
        return _in_pieces(hear(path, events, answer.headers.get("X-Cache")))


def _until_done(answer: requests.Response) -> Iterator[Json]:
    """Lines, up to exactly [DONE]; what follows is not read."""
    for raw in answer.iter_lines(decode_unicode=False):
        line = raw.decode()
        if line == DONE:
            return
        if line.startswith("data:"):
            yield json.loads(line[5:].strip("\n"))
    raise EOFError("no [DONE]")


def _in_pieces(heard: Heard) -> Heard:
    """Each text is taken for whole, and its new end handed on."""
    pieces, pos = [], 0
    for event in heard.events:
        pieces.append(event["text"][pos:])
        pos += len(pieces[-1])
    assert heard.texts == ["".join(pieces)]
    return heard


def runtime_chunks(url: str, path: str, body: Json) -> Heard:
    """sglang's Runtime.async_generate: an HTTP chunk is taken for an event."""

    async def ask() -> Heard:
        events: list[Json] = []
        async with (
            aiohttp.ClientSession(timeout=_AIOHTTP_TIMEOUT, trust_env=True) as session,
            session.post(url + path, json={**body, "stream": True, "session_id": None}) as answer,
        ):
            async for data, _ in answer.content.iter_chunks():
                chunk = data.decode()
                assert chunk.startswith("data:") and chunk.find("\n\n") == len(chunk) - 2, chunk
                if chunk == f"{DONE}\n\n":
                    break
                events.append(json.loads(chunk[5:].strip("\n")))
            else:
                raise EOFError("no [DONE]")
            return _in_pieces(hear(path, events, answer.headers.get("X-Cache")))

    return asyncio.run(ask())


_AIOHTTP_TIMEOUT = aiohttp.ClientTimeout(total=SECONDS)

_BENCH_FIELDS: dict[str, Json] = {
    GENERATE: {
        "lora_path": None,
        "return_logprob": False,
        "return_routed_experts": False,
        "logprob_start_len": -1,
    },
    COMPLETIONS: {"best_of": 1, "ignore_eos": True},
    CHAT: {"ignore_eos": True},
}


def bench(url: str, path: str, body: Json) -> Heard:
    """sglang's bench_serving: a session a call, each event one line."""

    async def ask() -> Heard:
        events: list[Json] = []
        lines: list[str] = []
        payload = {**_BENCH_FIELDS[path], **body, "stream": True}
        async with (
            aiohttp.ClientSession(timeout=_AIOHTTP_TIMEOUT, read_bufsize=10 * 2**20) as session,
            session.post(url + path, json=payload) as answer,
        ):
            assert answer.status == 200
            async for raw in answer.content:
                if line := raw.strip().decode():
                    lines.append(line.removeprefix("data: "))
                    if lines[-1] != "[DONE]":
                        events.append(json.loads(lines[-1]))
        for event in events:
            if path == GENERATE:
                assert event["meta_info"]["completion_tokens"] >= 0
            elif path == COMPLETIONS:
                assert isinstance(event["choices"][0]["text"], str)
        assert lines[-1] == "[DONE]"
        return hear(path, events, answer.headers.get("X-Cache"), lines)

    return asyncio.run(ask())


_BATCH_PARAMS = {"ignore_eos": True, "json_schema": None, "stream_interval": 1}


def one_batch(url: str, path: str, body: Json) -> Heard:
    """sglang's one_batch_server: a list of token ids; every event has an index."""
    params = {**body["sampling_params"], **_BATCH_PARAMS}
    payload = {**body, "sampling_params": params, "return_logprob": False, "parallel_batch": True}
    with requests.post(
        url + path, json={**payload, "stream": True}, stream=True, timeout=SECONDS
    ) as answer:
        answer.raise_for_status()
        events = list(_until_done(answer))
        assert {event["index"] for event in events} == set(range(len(body["input_ids"])))
        return hear(path, events, answer.headers.get("X-Cache"))


def curl(url: str, path: str, body: Json) -> Heard:
    """What was heard is the body, byte for byte."""
    done = subprocess.run(
        ["curl", "-sS", "-N", "--fail", "--max-time", str(SECONDS), "-D", "/dev/stderr",
         "-H", "Content-Type: application/json", "-d", "@-", url + path],
        input=json.dumps({**body, "stream": True}).encode(), check=True, capture_output=True,
    )  # fmt: skip
    head = [line.partition(": ") for line in done.stderr.decode().splitlines()]
    headers = {name.lower(): value for name, _, value in head}
    assert headers["content-type"].startswith("text/event-stream")
    *events, last, end = done.stdout.decode().split("\n\n")
    assert (last, end) == (DONE, "")
    parsed = [json.loads(event.removeprefix("data: ")) for event in events]
    return hear(path, parsed, headers.get("x-cache"), [done.stdout])

"""The simulator against recorded SGLang 0.5.23 traffic, then its own switches."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cached_addon import simulator as demonstration
from tests.conftest import until
from tests.simulator import Fault, Profile, Simulator, running
from tests.tables import each

Json = dict[str, Any]
CORPUS = {path.stem: json.loads(path.read_text("utf-8"))
          for path in sorted((Path(__file__).parent / "corpus").glob("*.json"))}  # fmt: skip
OUT_OF_SCOPE = {
    "detokenize": "no detokenizer: the ids of prompt words are one-way",
    "embeddings-error": "no embedding route",
    "messages-anthropic": "no Anthropic route",
    "ollama-chat": "no Ollama route",
    "options-chat": "no CORS",
    "responses": "no Responses route",
    "score": "no scoring route",
}
OTHER_TEXT = {
    "generate-too-long": "names token counts, and the simulator counts words",
    "get-root": "the simulator says that it is one",
}
OTHER_LENGTH = {
    "bytes": "bytes of a word",
    "tokens": "tokens of a prompt, when all there is is a prompt",
    "capture_batch_sizes": "sizes of a real server",
}
OTHER_NULL = {"cached_tokens_details": "null only while nothing of the prompt was cached"}
IN_SCOPE = [name for name in CORPUS if name not in OUT_OF_SCOPE]
STREAMS = [name for name in IN_SCOPE if '"stream": true' in str(CORPUS[name]["request"]["body"])]
PLAIN = [name for name in IN_SCOPE if name not in STREAMS]
CHAT = {"messages": [{"role": "user", "content": "What is 2+2?"}]}
ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": ADD}}]
ROUTES: dict[str, Json] = {
    "/generate": {"text": "one two", "sampling_params": {"max_new_tokens": 8}},
    "/v1/completions": {"prompt": "one two", "max_tokens": 8},
    "/v1/chat/completions": {**CHAT, "max_tokens": 8},
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    with running() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def small() -> Iterator[demonstration.Simulator]:
    """The one that `demo` and `simulate` start."""
    with demonstration.running(demonstration.Simulator()) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def locked() -> Iterator[Simulator]:
    with running(Profile(api_key="secret")) as simulator:
        yield simulator


def post(simulator: Simulator, path: str, body: Any, **more: Any) -> requests.Response:
    return requests.post(simulator.url + path, json=body, timeout=10, **more)


def info(simulator: Simulator, path: str = "/model_info") -> Json:
    value: Json = requests.get(simulator.url + path, timeout=10).json()
    return value


def connect(simulator: Simulator, path: str, body: str, headers: Json | None = None,
            method: str = "POST") -> socket.socket:  # fmt: skip
    """A connection that has sent one request."""
    host, port = simulator.url.removeprefix("http://").split(":")
    conn = socket.create_connection((host, int(port)), timeout=10)
    data = body.encode()
    fields = {"content-type": "application/json", "content-length": str(len(data)),
              "host": f"{host}:{port}", "connection": "close", **(headers or {})}  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    conn.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
    return conn


def read_all(conn: socket.socket) -> bytes:
    with closing(conn):
        return b"".join(iter(lambda: conn.recv(65536), b""))


def http_chunks(raw: bytes) -> tuple[str, list[str], bool]:
    """Head, chunks, and whether the last, empty chunk came."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    chunks: list[str] = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return head.decode(), chunks, True
        chunks.append(rest[: int(size, 16)].decode())
        rest = rest[int(size, 16) + 2 :]
    return head.decode(), chunks, False


def parsed(text: str) -> list[Any]:
    """The events of a stream; [DONE] as that string."""
    data = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    return ["[DONE]" if event == "[DONE]" else json.loads(event) for event in data]


def differences(real: Any, own: Any, at: str = "$", lengths: tuple[str, ...] = ()) -> list[str]:
    """Where two JSON values differ in keys, key order, types or lengths."""
    name = at.rsplit(".", 1)[-1].split("[")[0]
    if name in OTHER_NULL:
        return []
    if type(real) is not type(own):
        return [f"{at}: {real!r} but {own!r}"]
    if isinstance(real, dict):
        if name == "top_logprobs" and "token" not in real:  # the keys are words
            return differences(list(real.values()), list(own.values()), f"{at}.values")
        if list(real) != list(own):
            return [f"{at}: keys {list(real)} but {list(own)}"]
        pairs = [(real[key], own[key], f"{at}.{key}") for key in real]
    elif isinstance(real, list):
        if name not in (*OTHER_LENGTH, *lengths) and len(real) != len(own):
            return [f"{at}: length {len(real)} but {len(own)}"]
        pairs = [(r, o, f"{at}[{i}]") for i, (r, o) in enumerate(zip(real, own, strict=False))]
    else:
        return []
    return [line for r, o, where in pairs for line in differences(r, o, where, lengths)]


def kind_of(event: Any) -> str:
    """What a stream event is: done, error, usage, role, reasoning, tool, text, rows or end."""
    if isinstance(event, str):
        return "done"
    if "error" in event:
        return "error"
    if "meta_info" in event:
        stamped = "response_sent_to_client_ts" in event["meta_info"]
        ended = event["meta_info"]["finish_reason"] is not None
        return ("only" if stamped else "end") if ended else ("first" if stamped else "text")
    if not event["choices"]:
        return "usage"
    choice = event["choices"][0]
    if choice["finish_reason"] is not None:
        return "end"
    if "delta" not in choice:
        return "text"
    kinds = {"tool_calls": "tool", "role": "role", "content": "text"}
    kinds["reasoning_content"] = "reasoning"
    return next((kinds[k] for k in kinds if choice["delta"].get(k) is not None), "rows")


def index_of(event: Any) -> int | None:
    if isinstance(event, str) or not event.get("choices", [1]):
        return None
    return int(event["choices"][0]["index"] if "choices" in event else event.get("index", 0))


def grammar(events: list[Any]) -> dict[int | None, list[str]]:
    """Per index, the kinds in order; runs of one kind count once, native text may coalesce."""
    found: dict[int | None, list[str]] = {}
    for event in events:
        kinds = found.setdefault(index_of(event), [])
        kind = kind_of(event)
        chat = not isinstance(event, str) and event.get("object") == "chat.completion.chunk"
        if (chat or kind != "text") and kinds[-1:] != [kind]:
            kinds.append(kind)
    return found


# ---------------------------------------------------------------- against the recordings


def test_corpus_is_covered() -> None:
    """The tables name recordings that exist, and most recordings are compared."""
    assert {*OUT_OF_SCOPE, *OTHER_TEXT} <= set(CORPUS)
    assert len(PLAIN) > 45 and len(STREAMS) > 8


GENERATED = [name for name in PLAIN if CORPUS[name]["response"]["status"] == 200
             and CORPUS[name]["request"]["path"] in ROUTES]  # fmt: skip


@each("name", PLAIN)
def test_answer_like_recorded(name: str, shared: Simulator, locked: Simulator) -> None:
    """Status, content type and structure are the recorded ones; error texts to the letter."""
    is_like_recorded(name, locked if name.startswith("auth-") else shared)


@each("name", GENERATED)
def test_small_answer_like_recorded(name: str, small: demonstration.Simulator) -> None:
    """So are the answers of the simulator that users start."""
    is_like_recorded(name, small)


def is_like_recorded(name: str, simulator: demonstration.Simulator) -> None:
    asked, real = CORPUS[name]["request"], CORPUS[name]["response"]
    data = None if asked["body"] is None else asked["body"].encode()
    own = requests.request(asked["method"], simulator.url + asked["path"], data=data,
                           headers=asked["headers"], timeout=10)  # fmt: skip
    recorded = {key.lower(): value for key, value in real["headers"]}
    assert own.status_code == real["status"]
    for header in ("content-type", "allow", "vary"):
        assert own.headers.get(header) == recorded.get(header)
    assert own.headers["server"] == "sglang-simulator"
    bare = not recorded.get("content-type") or asked["method"] == "HEAD"
    if bare or (own.status_code >= 400 and name not in OTHER_TEXT):
        assert own.text == real["body"]
    else:
        lengths = ("output_ids",) if name == "generate-stop" else ()
        assert differences(json.loads(real["body"]), own.json(), lengths=lengths) == []


@each("name", STREAMS)
def test_stream_like_recorded(name: str, shared: Simulator, small: demonstration.Simulator) -> None:
    """One event per HTTP chunk, the recorded kinds in the recorded order, with their keys."""
    is_streamed_like_recorded(name, shared)
    if '{"error"' not in CORPUS[name]["response"]["body"]:  # what it refuses, it refuses shortly
        is_streamed_like_recorded(name, small)


def is_streamed_like_recorded(name: str, simulator: demonstration.Simulator) -> None:
    asked, real = CORPUS[name]["request"], CORPUS[name]["response"]
    head, chunks, ended = http_chunks(read_all(connect(simulator, asked["path"], asked["body"])))
    assert head.startswith("HTTP/1.1 200 ") and "text/event-stream; charset=utf-8" in head
    assert ended
    assert all(chunk.startswith("data: ") and chunk.endswith("\n\n") for chunk in chunks)
    assert [chunk.count("\n\n") for chunk in chunks] == [1] * len(chunks)
    theirs, ours = parsed(real["body"]), parsed("".join(chunks))
    assert grammar(theirs) == grammar(ours)
    for kind in {kind_of(event) for event in theirs} - {"done"}:
        samples = [[e for e in events if kind_of(e) == kind] for events in (theirs, ours)]
        if samples[1]:
            lengths = ("output_ids", "content", "tokens")
            assert differences(samples[0][0], samples[1][0], lengths=lengths) == []
    if "error" in theirs[0]:
        assert theirs == ours


# ---------------------------------------------------------------- n, rid, content


SP = {"max_new_tokens": 2}
N_RULES: list[tuple[str, Json, int, int | str]] = [
    ("/generate", {"text": "a", "sampling_params": {**SP, "n": 0}}, 200, 0),
    ("/generate", {"text": "a", "sampling_params": {**SP, "n": -1}}, 200, 0),
    ("/generate", {"text": "a", "sampling_params": {**SP, "n": 1}}, 200, 0),
    ("/generate", {"text": "a", "n": 3, "sampling_params": SP}, 200, 0),
    ("/generate", {"text": "a", "sampling_params": {**SP, "n": 3}}, 200, 3),
    ("/generate", {"text": ["a"], "sampling_params": [{**SP, "n": 2}]}, 200, 2),
    ("/generate", {"text": ["a", "b"], "sampling_params": {**SP, "n": 2}}, 200, 4),
    ("/generate", {"input_ids": [[5], [6, 7]], "sampling_params": SP}, 200, 2),
    ("/generate", {"text": []}, 200, "[]"),
    ("/generate", {"text": "a", "sampling_params": {"n": None}}, 500, "Internal Server Error"),
    ("/generate", {"text": "a", "sampling_params": [SP]}, 500, "Internal Server Error"),
    ("/generate", {"text": "a", "sampling_params": {"n": "2"}}, 400,
     '{"error":"invalid type: string \\"2\\", expected i64"}'),
    ("/generate", {"text": "a", "sampling_params": {"n": 2.0}}, 400,
     '{"error":"invalid type: floating point `2.0`, expected i64"}'),
    ("/generate", {"text": ["a", "b"], "sampling_params": [{"n": 2}, {}]}, 400,
     '{"error":{"message":"The parallel_sample_num should be the same for all samples in sample '
     'params."}}'),
    ("/v1/completions", {"prompt": "a", "n": "2"}, 200, 2),
    ("/v1/completions", {"prompt": "a", "n": 2.0}, 200, 2),
    ("/v1/completions", {"prompt": "a", "n": -1}, 200, 1),
    ("/v1/completions", {"prompt": [[5], [6]], "n": 2}, 200, 4),
    ("/v1/completions", {"prompt": "a", "n": 0}, 400, '{"object":"error","message":"range() arg 3 '
     'must not be zero","type":"BadRequest","param":null,"code":400}'),
    ("/v1/completions", {"prompt": "a", "n": None}, 400, "Input should be a valid integer"),
    ("/v1/chat/completions", {**CHAT, "n": 2}, 200, 2),
    ("/v1/chat/completions", {**CHAT, "n": 0}, 400, "range() arg 3 must not be zero"),
    ("/v1/chat/completions", {**CHAT, "n": None}, 400, "Input should be a valid integer"),
]  # fmt: skip


@each(("path", "body", "status", "expected"), N_RULES)
def test_n(path: str, body: Json, status: int, expected: int | str, shared: Simulator) -> None:
    """`expected`: the number of samples (0: an object of /generate), or part of the text."""
    answer = post(shared, path, body)
    assert answer.status_code == status
    if isinstance(expected, str):
        assert expected in answer.text
        return
    value = answer.json()
    if path != "/generate":
        assert [choice["index"] for choice in value["choices"]] == list(range(expected))
    elif expected:
        assert len({item["meta_info"]["id"] for item in value}) == len(value) == expected
    else:
        assert value["meta_info"]["completion_tokens"] == 2


REFUSED: list[tuple[str, Json, int, str]] = [
    ("/generate", {"input_ids": []}, 400, '{"error":{"message":"input_ids cannot be empty."}}'),
    ("/generate", {"text": 5}, 400, "2 validation errors:"),
    ("/generate", {"text": ["a", "b"], "rid": ["x"]}, 400, "rids length mismatch"),
    ("/generate", {"text": ["a", "b"], "rid": ["x", "x"]}, 400, "within the request: ['x']"),
    ("/v1/completions", {}, 400, "'loc': ('body', 'prompt'), 'msg': 'Field required'"),
    ("/v1/completions", {"prompt": 5}, 400, "4 validation errors:"),
    ("/v1/completions", {"prompt": []}, 400, '"Prompt cannot be empty","type":"BadRequestError"'),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens must be positive"),
    ("/v1/completions", {"prompt": "a", "top_p": 7}, 400, "top_p must be in (0, 1], got 7.0."),
    ("/v1/completions", {"prompt": "a", "stream_options": "x"}, 400, "Input should be a valid dic"),
    ("/v1/chat/completions", {**CHAT, "stream_options": 5}, 400, "'type': 'model_attributes_type'"),
    ("/v1/chat/completions", {"messages": []}, 400, "Messages cannot be empty."),
    ("/v1/chat/completions", {"messages": "x"}, 400, "Input should be a valid list"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": -1}, 400, "max_new_tokens must be at least 0"),
    ("/v1/chat/completions", {**CHAT, "tool_choice": "required"}, 400, "Tools cannot be empty"),
    ("/v1/chat/completions", {**CHAT, "return_meta_info": True, "stream": True}, 400, "BadRequest"),
    ("/v1/chat/completions", {**CHAT, "rid": ["x"]}, 500, "unhashable type: 'list'"),
    ("/nope", {}, 404, '{"detail":"Not Found"}'),
]


@each(("path", "body", "status", "text"), REFUSED)
def test_refused(path: str, body: Json, status: int, text: str, shared: Simulator) -> None:
    """Wrong values get the status and the text of SGLang."""
    answer = post(shared, path, body)
    assert (answer.status_code, text in answer.text) == (status, True), answer.text


RIDS: list[tuple[str, Json, list[str] | None]] = [
    ("/generate", {"text": "a", "rid": "x"}, ["x"]),
    ("/generate", {"text": ["a", "b"], "rid": "x"}, ["x_0", "x_1"]),
    ("/generate", {"text": ["a", "b"], "rid": ["y", "x"]}, ["y", "x"]),
    ("/generate", {"text": "a", "rid": "x", "sampling_params": {"n": 2}}, None),
    ("/v1/completions", {"prompt": "a", "rid": "x"}, ["x"]),
    ("/v1/completions", {"prompt": ["a"], "rid": "x"}, ["x_0"]),
    ("/v1/completions", {"prompt": "a", "rid": "x", "n": 2}, None),
    ("/v1/chat/completions", {**CHAT, "rid": "x"}, ["x"]),
]


@each(("path", "body", "expected"), RIDS)
def test_rid(path: str, body: Json, expected: list[str] | None, shared: Simulator) -> None:
    """The client's rid is kept, numbered, or replaced by 32 hex digits."""
    value = post(shared, path, body).json()
    items = value if isinstance(value, list) else [value]
    found = [item["meta_info"]["id"] if path == "/generate" else item["id"] for item in items]
    assert found == expected if expected else all(len(rid) == 32 for rid in found)


def texts(simulator: Simulator, path: str, body: Json) -> list[str]:
    value = post(simulator, path, body).json()
    if path == "/generate":
        return [item["text"] for item in (value if isinstance(value, list) else [value])]
    return [c["text"] if "text" in c else c["message"]["content"] for c in value["choices"]]


def heated(body: Json, heat: float, n: int) -> Json:
    """The body with temperature and n where its route wants them."""
    inner = body.get("sampling_params", body)
    inner = {**inner, "temperature": heat, "n": n}
    return {**body, "sampling_params": inner} if "text" in body else inner


@each("path", ROUTES)
def test_content(path: str) -> None:
    """Greedy is a function of seed, model and prompt; hot samples differ; runs repeat."""
    cold, hot = heated(ROUTES[path], 0, 2), heated(ROUTES[path], 0.9, 2)
    runs = []
    for seed in (1, 1, 2):
        with running(Profile(seed=seed)) as simulator:
            runs.append([texts(simulator, path, body) for body in (cold, hot, cold, hot)])
            simulator.profile = Profile(seed=seed, model="another")
            assert texts(simulator, path, cold) != runs[-1][0]
            assert simulator.samples == 10 and simulator.tokens == 80
    first, again, other = runs
    assert first == again and first[0] == first[2] and first[0] != other[0]
    assert first[0][0] == first[0][1]
    assert len({*first[1], *first[3]}) == 4


@each("path", ROUTES)
def test_stream_says_the_same(path: str, shared: Simulator) -> None:
    """A greedy stream carries the text of the greedy answer, with stop strings too."""
    body = heated(ROUTES[path], 0, 1)
    for stop in ([], [texts(shared, path, body)[0][9:14]]):
        inner = {**body.get("sampling_params", body), "stop": stop}
        asked = {**body, "sampling_params": inner} if "text" in body else inner
        events = parsed(post(shared, path, {**asked, "stream": True}).text)[:-1]
        if path == "/generate":
            said = events[-1]["text"]
        else:
            choices = [event["choices"][0] for event in events]
            said = "".join(c.get("text") or c.get("delta", {}).get("content", "") for c in choices)
            assert choices[-1]["matched_stop"] == (stop[0] if stop else None)
        assert [said] == texts(shared, path, asked)
        assert said and not any(one in said for one in stop)


def test_incremental() -> None:
    """With the flag on, /generate streams deltas that join to the whole."""
    with running(Profile(incremental=True)) as simulator:
        body = heated(ROUTES["/generate"], 0, 1)
        events = parsed(post(simulator, "/generate", {**body, "stream": True}).text)[:-1]
        assert [len(event["output_ids"]) for event in events] == [1] * 8
        whole = texts(simulator, "/generate", body)
        assert ["".join(event["text"] for event in events)] == whole


def test_tools(shared: Simulator) -> None:
    """`required` makes each sample a call with fresh id and fitting arguments; streams too."""
    body = {**CHAT, "tools": TOOLS, "tool_choice": "required", "n": 2, "temperature": 0}
    choices = post(shared, "/v1/chat/completions", body).json()["choices"]
    calls = [choice["message"]["tool_calls"][0] for choice in choices]
    assert len({call["id"] for call in calls}) == 2 and len(calls[0]["id"]) == len("call_") + 24
    assert {choice["finish_reason"] for choice in choices} == {"tool_calls"}
    assert [choice["message"]["content"] for choice in choices] == ["", ""]
    wanted = calls[0]["function"]["arguments"]
    assert [type(value) for value in json.loads(wanted).values()] == [int, str]
    events = parsed(post(shared, "/v1/chat/completions", {**body, "n": 1, "stream": True}).text)
    assert grammar(events)[0] == ["role", "tool", "end"]
    deltas = [e["choices"][0]["delta"]["tool_calls"][0] for e in events if kind_of(e) == "tool"]
    assert deltas[0]["function"] == {"name": "add", "arguments": ""} and deltas[1]["id"] is None
    assert "".join(delta["function"]["arguments"] for delta in deltas) == wanted


def test_thinking(shared: Simulator) -> None:
    """`enable_thinking` splits off reasoning and counts it, whole and streamed."""
    body = {**CHAT, "temperature": 0, "chat_template_kwargs": {"enable_thinking": True}}
    value = post(shared, "/v1/chat/completions", body).json()
    message = value["choices"][0]["message"]
    assert message["reasoning_content"] and message["content"]
    assert value["usage"]["reasoning_tokens"] == 16
    assert value["usage"]["completion_tokens_details"] == {"reasoning_tokens": 16}
    events = parsed(post(shared, "/v1/chat/completions", {**body, "stream": True}).text)
    assert grammar(events)[0] == ["role", "reasoning", "text", "end"]
    thought = [e["choices"][0]["delta"]["reasoning_content"] or "" for e in events[:-1]]
    assert "".join(thought) == message["reasoning_content"]


# ---------------------------------------------------------------- streams


def events_of(simulator: Simulator, path: str, body: Json) -> list[Any]:
    """The events of a stream without [DONE]."""
    events = parsed(post(simulator, path, {**body, "stream": True}).text)
    assert events.pop() == "[DONE]"
    return events


def chat_events(simulator: Simulator, body: Json) -> list[Any]:
    return events_of(simulator, "/v1/chat/completions", body)


def delta_of(event: Any) -> Json:
    delta: Json = event["choices"][0]["delta"]
    return delta


def words_of(events: list[Any]) -> dict[int, list[str]]:
    """Per index, the texts of its events."""
    found: dict[int, list[str]] = {}
    for event in events:
        if (index := index_of(event)) is not None:
            choice = event["choices"][0] if "choices" in event else event
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            found.setdefault(index, []).extend([text] * bool(text))
    return found


def rows_of(event: Any) -> list[str]:
    """The tokens whose log-probabilities an event of chat carries."""
    return [row["token"] for row in (event["choices"][0]["logprobs"] or {"content": []})["content"]]


COLD = {**CHAT, "temperature": 0, "max_tokens": 8}
THINK = {**COLD, "chat_template_kwargs": {"enable_thinking": True}}
AUTO = {**COLD, "tools": TOOLS}
CALL = {**AUTO, "tool_choice": "required"}
COUNTS = ["prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details",
          "reasoning_tokens", "completion_tokens_details"]  # fmt: skip
OPTIONS: list[tuple[Json | None, bool, bool]] = [
    (None, False, False),
    ({}, False, False),
    ({"include_usage": None, "continuous_usage_stats": None}, False, False),
    ({"include_usage": False, "continuous_usage_stats": False}, False, False),
    ({"include_usage": True}, False, True),
    ({"continuous_usage_stats": True}, True, False),
    ({"continuous_usage_stats": True, "include_usage": False}, True, False),
    ({"continuous_usage_stats": True, "include_usage": True}, True, True),
]
COUNTED: list[tuple[str, Json]] = [
    ("/v1/completions", {"prompt": ["one two", "three"], "max_tokens": 3}),
    *(("/v1/chat/completions", body) for body in (COLD, THINK, AUTO, CALL)),
]


@each(("options", "each", "last"), OPTIONS)
@each(("path", "body"), COUNTED)
def test_usage_in_streams(
    path: str, body: Json, options: Json | None, each: bool, last: bool, shared: Simulator
) -> None:
    """One option counts each choice at each of its deltas, the other all of them at the end."""
    body = {**body, "n": 2}
    whole = post(shared, path, body).json()["usage"]
    events = events_of(shared, path, {**body, "stream_options": options})
    assert [kind_of(event) == "usage" for event in events].count(True) == last
    if last:
        shown = {k: v for k, v in whole.items() if v is not None or path != "/v1/completions"}
        assert events.pop()["usage"] == shown
    counts: dict[int | None, list[Json]] = {}
    for event in events:
        is_delta = path == "/v1/completions" or kind_of(event) in ("text", "reasoning", "tool")
        by_pydantic = path == "/v1/completions" or "role" in delta_of(event)
        if each and is_delta:
            assert list(event) == ["id", "object", "created", "model", "choices", "usage"]
            counts.setdefault(index_of(event), []).append(event["usage"])
        elif by_pydantic and is_delta:
            assert event["usage"] is None
        else:
            assert "usage" not in event
    for told in counts.values():
        assert [list(one) for one in told] == [COUNTS] * len(told)
        totals = [one["completion_tokens"] for one in told]
        assert totals == sorted(totals) and len(set(totals)) > 1 and totals[0] == 1
        assert [one["total_tokens"] - one["prompt_tokens"] for one in told] == totals
    if each:
        ends = [told[-1] for told in counts.values()]
        assert sum(one["completion_tokens"] for one in ends) == whole["completion_tokens"]
        assert sum(one["reasoning_tokens"] for one in ends) == whole["reasoning_tokens"]
        assert sum(one["prompt_tokens"] for one in ends) == 2 * whole["prompt_tokens"]


def test_event_with_usage_like_recorded(shared: Simulator) -> None:
    """A chunk of `continuous_usage_stats`, as a real server sent it."""
    real = json.loads(
        '{"id":"ecbf46ab9f35406d9776eb4e98681997","object":"chat.completion.chunk","created":'
        '1795431938,"model":"default","choices":[{"index":0,"delta":{"reasoning_content":null,'
        '"content":"ve"},"logprobs":{"content":[{"token":"ve","bytes":[118,101],"logprob":'
        '-2.9917097091674805,"top_logprobs":[]}]},"finish_reason":null,"matched_stop":null}],'
        '"usage":{"prompt_tokens":20,"total_tokens":21,"completion_tokens":1,'
        '"prompt_tokens_details":null,"reasoning_tokens":0,"completion_tokens_details":null}}'
    )
    body = {**COLD, "logprobs": True, "stream_options": {"continuous_usage_stats": True}}
    assert differences(real, chat_events(shared, body)[1]) == []


NO_ROLE = {"role": None, "content": None, "reasoning_content": None}


def test_call_in_a_stream(shared: Simulator) -> None:
    """A call's chunks are worded by pydantic; the stream names the stop that JSON hides."""
    first, *others, end = chat_events(shared, CALL)[1:]
    call = delta_of(first)["tool_calls"][0]
    assert call["id"].startswith("call_")
    named = {"id": call["id"], "index": 0, "type": "function"}
    named["function"] = {"name": "add", "arguments": ""}
    assert json.dumps(delta_of(first)) == json.dumps({**NO_ROLE, "tool_calls": [named]})
    for event in others:
        function = {
            "name": None,
            "arguments": delta_of(event)["tool_calls"][0]["function"]["arguments"],
        }
        more = {"id": None, "index": 0, "type": "function", "function": function}
        assert json.dumps(delta_of(event)) == json.dumps({**NO_ROLE, "tool_calls": [more]})
    assert [event["usage"] for event in (first, *others)] == [None] * (1 + len(others))
    assert delta_of(end) == {"reasoning_content": None} and "usage" not in end
    whole = post(shared, "/v1/chat/completions", CALL).json()["choices"][0]
    assert (end["choices"][0]["finish_reason"], whole["finish_reason"]) == ("tool_calls",) * 2
    assert (end["choices"][0]["matched_stop"], whole["matched_stop"]) == (2, None)


# Kinds of the events, and for how many tokens each has log-probabilities.
ROWS: list[tuple[str, Json, int, list[tuple[str, int]]]] = [
    ("plain", COLD, 3, [("role", 0), ("text", 3), ("text", 3), ("text", 2), ("end", 0)]),
    ("thinking", THINK, 3, [("role", 0), ("reasoning", 3), ("reasoning", 3), ("text", 0),
                            ("text", 2), ("end", 0)]),
    ("tools", AUTO, 4, [("role", 0), ("text", 0), ("rows", 4), ("text", 0), ("rows", 4),
                        ("end", 0)]),
    ("thinking and tools", {**THINK, "tools": TOOLS}, 4, [
        ("role", 0), ("reasoning", 4), ("text", 0), ("rows", 4), ("end", 0)]),
    ("call", CALL, 99, [("role", 0), ("tool", 0), ("tool", 0), ("rows", 4), ("end", 0)]),
]  # fmt: skip


@each(("name", "body", "coalesce", "expected"), ROWS)
def test_logprobs_in_a_stream(
    name: str, body: Json, coalesce: int, expected: list[tuple[str, int]]
) -> None:
    """A step's log-probabilities come with its first chunk, or behind what the parser told."""
    with running(Profile(coalesce=coalesce)) as simulator:
        events = chat_events(simulator, {**body, "logprobs": True})
        assert [(kind_of(event), len(rows_of(event))) for event in events] == expected
        alone = [event for event in events if kind_of(event) == "rows"]
        assert [delta_of(event) for event in alone] == [{"reasoning_content": None}] * len(alone)
        assert not any("usage" in event for event in alone)
        counting = {"logprobs": True, "stream_options": {"continuous_usage_stats": True}}
        told = [e for e in chat_events(simulator, {**body, **counting}) if kind_of(e) == "rows"]
        assert [list(event["usage"]) for event in told] == [COUNTS] * len(alone)


@each("top", [None, 0, 2])
@each("echo", [False, True])
def test_completions_stream(echo: bool, top: int | None, shared: Simulator) -> None:
    """A stream tells choice by choice what the answer tells, the prompt with the first delta."""
    body = {"prompt": ["one two", "three"], "n": 2, "max_tokens": 3, "temperature": 0,
            "echo": echo, "logprobs": top}  # fmt: skip
    whole = post(shared, "/v1/completions", body).json()["choices"]
    events = events_of(shared, "/v1/completions", body)
    for choice in whole:
        own = [e["choices"][0] for e in events if index_of(e) == choice["index"]]
        assert [list(one) for one in own] == [list(choice)] * 3
        assert [one["finish_reason"] for one in own] == [None, None, "length"]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert own[0]["text"].startswith(body["prompt"][choice["index"] // 2]) is echo
        for name, value in (choice["logprobs"] or {}).items():
            assert [row for one in own for row in one["logprobs"][name]] == value
        if top is not None:
            prompt = (2 - choice["index"] // 2) if echo and top else 0
            assert [len(one["logprobs"]["tokens"]) for one in own] == [prompt + 1, 1, 1]


@each("coalesce", [1, 3, 9])
@each("incremental", [False, True])
def test_generate_stream(incremental: bool, coalesce: int) -> None:
    """States that grow, or what is new in each; counts and the prompt are whole in both."""
    body = {"text": ["one two", "three"], "return_logprob": True, "logprob_start_len": 0,
            "top_logprobs_num": 2, "require_reasoning": True,
            "sampling_params": {"max_new_tokens": 8, "temperature": 0}}  # fmt: skip
    with running(Profile(incremental=incremental, coalesce=coalesce)) as simulator:
        wholes = post(simulator, "/generate", body).json()
        events = events_of(simulator, "/generate", body)
    counts = [min(count, 8) for count in range(coalesce, 8 + coalesce, coalesce)]
    assert wholes[0]["meta_info"]["reasoning_tokens"] == 4
    for index, whole in enumerate(wholes):
        own = [event for event in events if event["index"] == index]
        since = [0, *counts] if incremental else [0] * len(own)
        assert len(own) == len(counts)
        if incremental:
            assert "".join(event["text"] for event in own) == whole["text"]
        else:
            assert own[-1]["text"] == whole["text"]
            assert all(whole["text"].startswith(event["text"]) for event in own)
        for event, start, count in zip(own, since, counts, strict=False):
            meta, last = event["meta_info"], count == 8
            assert event["output_ids"] == whole["output_ids"][start:count]
            for name in ("output_token_logprobs", "output_top_logprobs"):
                assert meta[name] == whole["meta_info"][name][start:count]
            for name in ("input_token_logprobs", "input_top_logprobs", "prompt_tokens"):
                assert meta[name] == whole["meta_info"][name]
            assert meta["output_token_logprobs_length"] == meta["completion_tokens"] == count
            assert meta["reasoning_tokens"] == min(count, 4)
            assert ("response_sent_to_client_ts" in meta) is (event is own[0])
            assert ("e2e_latency" in meta) is ("weight_versions" in meta) is last
            assert meta["finish_reason"] == ({"type": "length", "length": 8} if last else None)


@each(("coalesce", "expected"), [(1, [1] * 8), (3, [3, 3, 2]), (8, [8])])
@each("path", ROUTES)
def test_coalesce(path: str, coalesce: int, expected: list[int]) -> None:
    """Several tokens an event, and the same words."""
    body = heated(ROUTES[path], 0, 2)
    with running(Profile(coalesce=coalesce, incremental=True)) as simulator:
        told = words_of(events_of(simulator, path, body))
        assert ["".join(told[k]) for k in (0, 1)] == texts(simulator, path, body)
        assert [[len(text.split()) for text in told[k]] for k in (0, 1)] == [expected] * 2
        assert simulator.tokens == 32


# ---------------------------------------------------------------- faults


WAITS = (Fault.HOLD, Fault.PAUSE)


def reasons(path: str, value: Any) -> list[str]:
    if path == "/generate":
        return [item["meta_info"]["finish_reason"]["type"] for item in value]
    return [choice["finish_reason"] for choice in value["choices"]]


@each("path", ROUTES)
@each("fault", [fault for fault in Fault if fault not in WAITS])
def test_fault(fault: Fault, path: str) -> None:
    """Each fault spoils one answer; the next one is whole."""
    body = heated(ROUTES[path], 0, 2)
    with running() as simulator:
        simulator.faults.append(fault)
        _, _, raw = read_all(connect(simulator, path, json.dumps(body))).partition(b"\r\n\r\n")
        assert (simulator.samples, simulator.running) == {
            Fault.TWO_WEIGHTS: (2, 0), Fault.OTHER_VERSION: (2, 0), Fault.TOO_FEW: (1, 0),
        }.get(fault, (0, 0))  # fmt: skip
        whole = post(simulator, path, body)
        assert whole.status_code == 200 and reasons(path, whole.json()) == ["length"] * 2
        if fault in (Fault.ERROR_503, Fault.ERROR_EVENT):
            assert raw == (b'{"object":"error","message":"The request queue is full.",'
                           b'"type":"503","param":null,"code":503}')  # fmt: skip
        elif fault is Fault.UNAUTHORIZED:
            assert raw == b'{"error":"Unauthorized"}'
        elif fault is Fault.NOT_JSON:
            assert raw == b"not json"
        elif fault is Fault.ERROR_BODY:
            assert raw == b'{"error":{"message":"simulated"}}'
        elif fault is Fault.CUT:
            assert abs(len(raw) - len(whole.content) // 2) < 5
        elif fault is Fault.ABORT:
            assert reasons(path, json.loads(raw)) == ["abort"] * 2
        elif fault is Fault.TOO_FEW:
            assert reasons(path, json.loads(raw)) == ["length"]
        else:
            value = json.loads(raw)
            place = value[1]["meta_info"] if path == "/generate" else value["metadata"]
            spans = [tuple(span.values()) for span in place["weight_versions"]]
            assert (
                spans
                == {
                    Fault.TWO_WEIGHTS: [("default", 0, 4), ("default-next", 4, 8)],
                    Fault.OTHER_VERSION: [("default-other", 0, 8)],
                }[fault]
            )
            assert place["weight_version"] == spans[-1][0] != info(simulator)["weight_version"]


@each("path", ROUTES)
def test_fault_in_stream(path: str) -> None:
    """A cut stream lacks [DONE] and the last chunk; an aborted or short one ends properly."""
    body = json.dumps({**heated(ROUTES[path], 0, 2), "stream": True})
    with running() as simulator:
        simulator.faults.extend([Fault.CUT, Fault.ABORT, Fault.TOO_FEW, Fault.NOT_JSON])
        answers = [http_chunks(read_all(connect(simulator, path, body))) for _ in range(4)]
        cut, aborted, short, broken = answers
        assert cut[1] and not cut[2] and "[DONE]" not in "".join(cut[1])
        ends = [event for event in parsed("".join(aborted[1])) if kind_of(event) == "end"]
        assert len(ends) == 2 and all('"abort"' in json.dumps(event) for event in ends)
        assert {index_of(event) for event in parsed("".join(short[1]))} == {0, None}
        assert broken[1] == ["data: not json\n\n", "data: [DONE]\n\n"]


TOLD = {"object": "error", "message": "Request running timeout reached.",
        "type": "SERVICE_UNAVAILABLE", "param": None, "code": 503}  # fmt: skip


@each("path", ROUTES)
@each("usage", [False, True])
def test_error_event(path: str, usage: bool) -> None:
    """Half of a stream, then an error, counts if they are asked for, [DONE]; nothing counts."""
    body = {**heated(ROUTES[path], 0, 2), "stream_options": {"include_usage": usage}}
    with running() as simulator:
        simulator.faults.append(Fault.ERROR_EVENT)
        raw = post(simulator, path, {**body, "stream": True}).text
        events = parsed(raw)
        place = next(k for k, event in enumerate(events) if kind_of(event) == "error")
        counted = usage and path != "/generate"
        assert [kind_of(e) for e in events[place:]] == ["error", *["usage"] * counted, "done"]
        assert "end" not in [kind_of(event) for event in events]
        told = [e for e in events[:place] if index_of(e) == 0 and kind_of(e) != "role"]
        assert len(told) == 4
        if path == "/generate":
            assert events[place]["error"] == {
                "message": TOLD["message"], "type": "invalid_request_error", "code": 400,
                "retryable": False}  # fmt: skip
        else:
            assert f"data: {json.dumps({'error': TOLD})}\n\n" in raw
        assert (simulator.samples, simulator.aborted, simulator.running) == (0, 0, 0)


def paused(simulator: Simulator, path: str, body: Json) -> tuple[socket.socket, bytes]:
    """A stream held in its middle: its connection, and all that has come."""
    simulator.faults.append(Fault.PAUSE)
    conn = connect(simulator, path, json.dumps({**body, "stream": True}))
    until(lambda: simulator.waiting == 1)
    raw = b""
    while raw.count(b"\n\n\r\n") < simulator.events:
        raw += conn.recv(65536)
    return conn, raw


@each("path", ROUTES)
@each("coalesce", [1, 3, 8])
def test_pause(path: str, coalesce: int) -> None:
    """Half of the tokens of each sample come at once, the others after `release`."""
    with running(Profile(coalesce=coalesce, incremental=True)) as simulator:
        conn, raw = paused(simulator, path, heated(ROUTES[path], 0, 2))
        half = parsed("".join(http_chunks(raw)[1]))
        assert len(half) == simulator.events and simulator.running == 2
        assert not {"end", "done"} & {kind_of(event) for event in half}
        assert [len("".join(words_of(half)[k]).split()) for k in (0, 1)] == [4, 4]
        simulator.release()
        _, chunks, ended = http_chunks(raw + read_all(conn))
        events = parsed("".join(chunks))
        assert ended and events.pop() == "[DONE]" and len(chunks) == simulator.events
        assert [len("".join(words_of(events)[k]).split()) for k in (0, 1)] == [8, 8]
        assert (simulator.waiting, simulator.samples, simulator.aborted) == (0, 2, 0)


def test_hold() -> None:
    """A held request waits for `release`, an abort, or its client to leave."""
    body = {**ROUTES["/generate"], "rid": "held"}
    with running() as simulator:
        simulator.faults.extend([Fault.HOLD] * 3)
        first = connect(simulator, "/generate", json.dumps(body))
        until(lambda: simulator.running == 1)
        twice = post(simulator, "/generate", body)  # takes a fault, too, but is refused
        assert twice.text == '{"error":{"message":"Duplicate request ID detected: held"}}'
        simulator.release()
        assert b'"type":"length"' in read_all(first)
        assert (simulator.samples, simulator.running) == (1, 0)
        second = connect(simulator, "/generate", json.dumps(body))
        until(lambda: simulator.running == 1)
        second.close()
        until(lambda: simulator.running == 0)
        assert (simulator.samples, simulator.aborted) == (1, 1)
        assert [request.path for request in simulator.received] == ["/generate"] * 3


# ---------------------------------------------------------------- ends: abort, leaving, stop


SLOW = Profile(tokens_per_second=200, time_to_first_token=0.01)


@each("path", ROUTES)
@each("stream", [False, True])
@each("call", [{"rid": "x"}, {"abort_all": True}])
def test_abort(path: str, stream: bool, call: Json) -> None:
    """/abort_request ends a running sample with what it has said; unknown ids are ignored."""
    with running(SLOW) as simulator:
        body = {**ROUTES[path], "rid": "x", "stream": stream, "max_tokens": 4000,
                "sampling_params": {"max_new_tokens": 4000}}  # fmt: skip
        conn = connect(simulator, path, json.dumps(body))
        until(lambda: simulator.running == 1)
        for wrong in ({"rid": "y"}, {"rid": ""}, {}):
            assert post(simulator, "/abort_request", wrong).status_code == 200
        assert simulator.running == 1
        done = post(simulator, "/abort_request", call)
        assert (done.status_code, done.text, done.headers.get("content-type")) == (200, "", None)
        raw = read_all(conn)
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert (b"[DONE]" in raw) is stream
        found = (
            b'"finish_reason":{"type":"abort","message":"Aborted","status_code":null,'
            b'"err_type":null}'
            if path == "/generate"
            else b'"finish_reason":"abort"'
        )
        assert raw.count(found) == 1
        assert (simulator.samples, simulator.aborted, simulator.running) == (0, 1, 0)


@each("path", ROUTES)
@each("stream", [False, True])
def test_client_leaves(path: str, stream: bool) -> None:
    """A client that leaves ends its samples at once."""
    with running(SLOW) as simulator:
        body = {**heated(ROUTES[path], 1, 3), "max_tokens": 4000, "stream": stream}
        if "text" in body:
            body["sampling_params"]["max_new_tokens"] = 4000
        conn = connect(simulator, path, json.dumps(body))
        until(lambda: simulator.running == 3)
        if stream:
            conn.recv(1)
        conn.close()
        until(lambda: simulator.running == 0)
        assert (simulator.samples, simulator.aborted) == (0, 3)


def test_stop_leaves_nothing() -> None:
    """On exit held, slow and idle connections are closed without an answer, the thread ends."""
    before = threading.active_count()
    with running(SLOW) as simulator:
        simulator.faults.append(Fault.HOLD)
        idle = requests.Session()
        idle.get(simulator.url + "/health", timeout=10)
        conns = []
        for stream in (False, False, True):
            body = {"text": "a", "stream": stream, "sampling_params": {"max_new_tokens": 4000}}
            conns.append(connect(simulator, "/generate", json.dumps(body)))
            until(lambda: simulator.running == len(conns))
    assert simulator.running == 0 and simulator.samples == 0
    assert [read_all(conn) for conn in conns[:2]] == [b"", b""]
    assert b"[DONE]" not in read_all(conns[2])
    assert threading.active_count() == before
    idle.close()
    with pytest.raises(requests.ConnectionError):
        requests.get(simulator.url, timeout=1)


# ---------------------------------------------------------------- other models


TENSORS = {"serialized_named_tensors": ["AA=="]}
NAMED: Json = {"names": [], "dtypes": [], "shapes": []}
# Route, body, message, whether other words come then, and the label that is shown then.
UPDATES: list[tuple[str, Json, str, bool, str]] = [
    ("/update_weights_from_tensor", TENSORS, "Success", True, "default"),
    ("/update_weights_from_tensor", {**TENSORS, "weight_version": "7"},
     "Success Weight version updated to 7.", True, "7"),
    ("/update_weights_from_distributed", NAMED, "Succeeded to update parameter online.", True,
     "default"),
    ("/update_weights_from_ipc", {"zmq_handles": {}, "weight_version": "7"},
     "Succeeded to update model weights. Weight version updated to 7.", True, "7"),
    ("/update_weights_from_disk", {"model_path": "simulated"},
     "Succeeded to update model weights.", False, "default"),
    ("/update_weights_from_disk", {"model_path": "simulated", "weight_version": "7"},
     "Succeeded to update model weights. Weight version updated to 7.", False, "7"),
    ("/update_weight_version", {"new_version": "7"}, "Weight version updated to 7", False, "7"),
    ("/begin_weight_update", {}, "Success", False, "default"),
    ("/weights_checker", {"action": "reset_tensors"}, "Success.", True, "default"),
    ("/weights_checker", {"action": "snapshot"}, "Success.", False, "default"),
]  # fmt: skip


@each(("path", "body", "message", "other", "label"), UPDATES)
def test_update(path: str, body: Json, message: str, other: bool, label: str) -> None:
    """An update changes what is said, and is seen only where SGLang shows it."""
    with running() as simulator:
        asked = {path: heated(ROUTES[path], 0, 1) for path in ROUTES}
        said = {path: texts(simulator, path, asked[path]) for path in ROUTES}
        before = [info(simulator), info(simulator, "/server_info")["random_seed"]]
        for again in (False, True):
            done = post(simulator, path, body)
            if not (again and path == "/begin_weight_update"):
                told = (done.json()["success"], done.json()["message"])
                assert (done.status_code, *told) == (200, True, message)
            now = {path: texts(simulator, path, asked[path]) for path in ROUTES}
            assert [now[path] != said[path] for path in ROUTES] == [other] * 3
            said = now
        assert info(simulator) == {**before[0], "weight_version": label}
        assert info(simulator, "/server_info")["random_seed"] == before[1]
        assert info(simulator, "/server_info")["weight_version"] == "default"


CHANGES: list[tuple[Json, str | None]] = [
    ({"weights": "w"}, None),
    ({"dtype": "float16"}, "dtype"),
    ({"quantization": "fp8"}, "quantization"),
    ({"revision": "main"}, "revision"),
    ({"chat_template": "t"}, "chat_template"),
]


@each(("changes", "shown"), CHANGES)
def test_become(changes: Json, shown: str | None) -> None:
    """Another model says something else, and shows itself in its own field alone."""
    path, body = "/generate", heated(ROUTES["/generate"], 0, 1)
    with running() as simulator:
        simulator.faults.append(Fault.HOLD)
        held = connect(simulator, path, json.dumps(body))
        until(lambda: simulator.waiting == 1)
        first = simulator.says(path, body)
        expected = simulator.says(path, body, **changes)
        infos = [info(simulator), info(simulator, "/server_info"), info(simulator, "/v1/models")]
        simulator.become(**changes)
        assert texts(simulator, path, body) == [expected] != [first]
        for name in ("created", "internal_states"):
            for found in (infos[1], infos[2]["data"][0]):
                found.pop(name, None)
        now = [info(simulator), info(simulator, "/server_info"), info(simulator, "/v1/models")]
        assert now[0] == infos[0]
        differing = [name for name in infos[1] if infos[1][name] != now[1][name]]
        assert differing == ([shown] if shown else [])
        assert {**now[2]["data"][0], **infos[2]["data"][0]} == now[2]["data"][0]
        simulator.release()
        assert first.encode() in read_all(held)  # it goes on as it began


def test_alias() -> None:
    """Another model behind an alias is not seen by it; an update from disk takes it away."""
    with running(Profile(served_model_name="alias")) as simulator:
        body = heated(ROUTES["/generate"], 0, 1)
        first = texts(simulator, "/generate", body)
        simulator.become(model="m2")
        assert info(simulator)["model_path"] == "m2"
        assert texts(simulator, "/generate", body) != first
        assert info(simulator)["served_model_name"] == "alias"
        assert info(simulator, "/v1/models")["data"][0]["id"] == "alias"
        post(simulator, "/update_weights_from_disk", {"model_path": "m3"})
        assert info(simulator, "/v1/models")["data"][0]["id"] == "m3"


def test_restart() -> None:
    """A restart can be noticed, undoes what an update did, and keeps the records."""
    body = {**heated(ROUTES["/generate"], 0, 1), "rid": "x"}
    with running(Profile(tokens_per_second=20)) as simulator:
        held = [connect(simulator, path, json.dumps({**ROUTES[path], "stream": stream}))
                for path in ROUTES for stream in (False, True)]  # fmt: skip
        until(lambda: simulator.running == 6)
        idle = connect(simulator, "/ping", "", {"connection": "keep-alive"}, "GET")
        assert idle.recv(99).startswith(b"HTTP/1.1 200")
        before, server = info(simulator), info(simulator, "/server_info")
        post(simulator, "/update_weights_from_tensor", {**TENSORS, "weight_version": "7"})
        post(simulator, "/load_lora_adapter", {"lora_name": "a", "lora_path": "/a"})
        post(simulator, "/pause_generation", {"mode": "in_place"})
        parked = connect(simulator, "/generate", json.dumps(body))
        until(lambda: simulator.parked == 1)
        url, count = simulator.url, len(simulator.received)
        simulator.restart(tokens_per_second=0)
        assert (simulator.running, simulator.parked, simulator.samples) == (0, 0, 0)
        for conn in (*held, idle, parked):
            assert b"[DONE]" not in read_all(conn)
        assert simulator.url == url and len(simulator.received) == count
        assert info(simulator) == before
        again = info(simulator, "/server_info")
        assert again["startup_time"] != server["startup_time"]
        assert again["random_seed"] != server["random_seed"]
        assert len(info(simulator, "/v1/models")["data"]) == 1
        assert texts(simulator, "/generate", body) == [simulator.says("/generate", body)]
        assert len(simulator.received) == count + 4


def test_down_and_up() -> None:
    """A server that is down refuses, keeps its port, and comes back as another process."""
    with running() as simulator, requests.Session() as session:
        seeds = [session.get(simulator.url + "/server_info", timeout=10).json()["random_seed"]]
        simulator.down()
        simulator.down()
        for _ in range(3):
            with pytest.raises(requests.ConnectionError):
                session.get(simulator.url + "/ping", timeout=10)
        simulator.up(model="m2", api_key="k")
        assert session.get(simulator.url + "/model_info", timeout=10).status_code == 401
        simulator.up(api_key="")
        assert info(simulator)["model_path"] == "m2"
        seeds.append(info(simulator, "/server_info")["random_seed"])
        assert len(set(seeds)) == 2
        with pytest.raises(TypeError):
            simulator.restart(no_such_field=1)
        assert info(simulator)["model_path"] == "m2"
        simulator.down()


# ---------------------------------------------------------------- adapters


ADAPTED: list[tuple[str, Json]] = [
    ("/generate", {"lora_path": "a"}),
    ("/generate", {"lora_path": ["a"], "text": ["one two"]}),
    ("/v1/completions", {"lora_path": "a"}),
    ("/v1/completions", {"model": "simulated:a"}),
    ("/v1/completions", {"model": "anything:a", "lora_path": "never"}),
    ("/v1/chat/completions", {"lora_path": "a"}),
    ("/v1/chat/completions", {"model": "simulated: a "}),
]


@each(("path", "more"), ADAPTED)
def test_adapter(path: str, more: Json) -> None:
    """An adapter and what its name stands for make a difference; an unknown one is refused."""
    plain = heated(ROUTES[path], 0, 1)
    body = {**plain, **more}
    with running() as simulator:
        base = texts(simulator, path, plain)
        told = post(simulator, path, body)
        assert told.status_code == 400
        assert "Got LoRA adapter that has never been loaded: a\\nAll loaded adapters: " in told.text
        said = []
        tensors = {"lora_name": "a", "config_dict": {}, **TENSORS}
        others = {**tensors, "serialized_named_tensors": ["BB=="]}
        for kind, load in (("", {"lora_name": "a", "lora_path": "/1"}),
                           ("", {"lora_name": "a", "lora_path": "/2"}),
                           ("_from_tensors", tensors), ("_from_tensors", others)):  # fmt: skip
            done = post(simulator, f"/load_lora_adapter{kind}", load)
            where = load.get("lora_path", "__tensor__")
            assert (done.status_code, done.json()) == (200, {
                "rid": None, "http_worker_ipc": None, "success": True, "error_message": "",
                "loaded_adapters": {"a": where}})  # fmt: skip
            card = info(simulator, "/v1/models")["data"][1]
            assert (card["id"], card["root"], card["parent"]) == ("a", where, "simulated")
            assert card["max_model_len"] is None
            said += texts(simulator, path, body)
            assert texts(simulator, path, plain) == base
            done = post(simulator, "/unload_lora_adapter", {"lora_name": "a"})
            assert done.json()["success"] and done.json()["loaded_adapters"] == {}
        assert len({*base, *said}) == 5


# ---------------------------------------------------------------- pauses, and info routes


@each("path", ROUTES)
@each("stream", [False, True])
def test_pause_of_the_server(path: str, stream: bool) -> None:
    """A paused server answers when it goes on, with the weights of then."""
    body = {**heated(ROUTES[path], 0, 1), "stream": stream}
    with running() as simulator:
        post(simulator, "/pause_generation", {})
        gone, conn = (connect(simulator, path, json.dumps(body)) for _ in range(2))
        until(lambda: simulator.parked == 2)
        gone.close()
        until(lambda: simulator.parked == 1)
        simulator.become(weights="new")
        done = post(simulator, "/continue_generation", {})
        assert done.json() == {"message": "Generation continued successfully.", "status": "ok"}
        raw = read_all(conn)
        assert simulator.samples == 1 and (b"[DONE]" in raw) is stream
        if not stream:
            assert simulator.says(path, body).encode() in raw
        assert (simulator.parked, simulator.aborted) == (0, 0)


@each("mode", ["abort", "retract", "in_place"])
def test_pause_of_a_running_sample(mode: str) -> None:
    """A pause ends a running sample or lets it stand still, as its mode says."""
    with running() as simulator:
        conn, _ = paused(simulator, "/v1/completions", heated(ROUTES["/v1/completions"], 0, 1))
        post(simulator, "/pause_generation", {"mode": mode})
        simulator.release()
        if mode == "abort":
            assert b'"finish_reason":"abort"' in read_all(conn)
        post(simulator, "/weights_checker", {})  # time to go on, if it would
        assert (simulator.running, simulator.samples) == (int(mode != "abort"), 0)
        post(simulator, "/continue_generation", {})
        if mode != "abort":
            assert b'"finish_reason":"length"' in read_all(conn)
        assert simulator.aborted == int(mode == "abort")


QUEUED = ["id", "finish_reason", "weight_version", "e2e_latency", "weight_versions"]


@each("path", ROUTES)
@each("stream", [False, True])
@each("how", [{"abort_all": True}, {"rid": "x"}])
def test_abort_in_the_queue(path: str, stream: bool, how: Json) -> None:
    """An abort before the first token tells of no prompt, as SGLang knows none then."""
    body = {**ROUTES[path], "rid": "x", "stream": stream}
    with running() as simulator:
        simulator.faults.append(Fault.HOLD)
        conn = connect(simulator, path, json.dumps(body))
        until(lambda: simulator.waiting == 1)
        assert post(simulator, "/abort_request", how).status_code == 200
        raw = read_all(conn)
        assert raw.startswith(b"HTTP/1.1 200 ") and (b"[DONE]" in raw) is stream
        assert (simulator.samples, simulator.aborted) == (0, 1)
        if stream:
            events = parsed("".join(http_chunks(raw)[1]))
            kinds = {"/generate": ["only"], "/v1/completions": ["end"]}
            assert [kind_of(e) for e in events] == [*kinds.get(path, ["role", "end"]), "done"]
            value = events[-2]
        else:
            value = json.loads(raw.partition(b"\r\n\r\n")[2])
        if path == "/generate":
            meta = value["meta_info"]
            assert (value["text"], value["output_ids"]) == ("", [])
            assert list(meta) == [*QUEUED, "completion_tokens", "response_sent_to_client_ts"]
            assert meta["finish_reason"] == {"type": "abort", "message": "Abort in waiting queue"}
            assert meta["weight_versions"] == [{"version": "default", "start": 0, "end": 0}]
        else:
            choice = value["choices"][0]
            assert (choice["finish_reason"], choice["matched_stop"]) == ("abort", None)
            if not stream:
                assert choice.get("text", choice.get("message", {}).get("content")) == ""
                assert [value["usage"][name] for name in COUNTS[:3]] == [0, 0, 0]
                assert value["metadata"]["weight_version"] == "default"


# ---------------------------------------------------------------- other routes


KEYS = {"api_key": "secret"}
BOTH = {**KEYS, "admin_api_key": "admin"}
AUTH: list[tuple[Json, str, str, str, int]] = [
    (KEYS, "GET", "/v1/models", "Bearer secret", 200),
    (KEYS, "GET", "/v1/models", "bEARER secret", 200),
    (KEYS, "GET", "/v1/models", "Bearer  secret", 401),
    (KEYS, "GET", "/v1/models", "secret", 401),
    (KEYS, "GET", "/v1/models", "Basic secret", 401),
    (KEYS, "GET", "/v1/models", "", 401),
    (KEYS, "GET", "/", "", 401),
    (KEYS, "GET", "/nope", "", 401),
    (KEYS, "GET", "/health_generate", "", 200),
    (KEYS, "GET", "/metrics", "", 404),
    (KEYS, "OPTIONS", "/generate", "", 405),
    (KEYS, "POST", "/generate", "Bearer wrong", 401),
    (KEYS, "GET", "/flush_cache", "Bearer secret", 200),
    (BOTH, "GET", "/flush_cache", "Bearer secret", 401),
    (BOTH, "GET", "/flush_cache", "Bearer admin", 200),
    (BOTH, "GET", "/v1/models", "Bearer admin", 401),
    ({"admin_api_key": "admin"}, "GET", "/v1/models", "", 200),
    ({"admin_api_key": "admin"}, "GET", "/flush_cache", "", 401),
]


@each(("keys", "method", "path", "given", "status"), AUTH)
def test_auth(keys: Json, method: str, path: str, given: str, status: int) -> None:
    """Keys are checked before route and body, with the exempt paths of SGLang."""
    with running(Profile(**keys)) as simulator:
        headers = {"authorization": given} if given else {}
        answer = requests.request(method, simulator.url + path, headers=headers, data="{",
                                  timeout=10)  # fmt: skip
        assert answer.status_code == status
        if status == 401:
            assert answer.text == '{"error":"Unauthorized"}'


def test_weights_update() -> None:
    """/update_weights_from_disk changes model and version everywhere."""
    with running() as simulator:
        body = {"model_path": "m2", "weight_version": "7"}
        done = post(simulator, "/update_weights_from_disk", body).json()
        assert list(done) == ["success", "message", "num_paused_requests"] and done["success"]
        info = requests.get(simulator.url + "/model_info", timeout=10).json()
        assert (info["model_path"], info["served_model_name"]) == ("m2", "m2")
        card = requests.get(simulator.url + "/v1/models", timeout=10).json()["data"][0]
        assert (card["id"], card["root"]) == ("m2", "m2")
        value = post(simulator, "/v1/completions", {"prompt": "a"}).json()
        assert value["metadata"]["weight_versions"] == [{"version": "7", "start": 0, "end": 16}]
        assert post(simulator, "/update_weights_from_disk", {}).status_code == 400


def test_server_info() -> None:
    """/server_info tells version, seed and start, and the key in clear as SGLang does."""
    infos = []
    for _ in range(2):
        with running(Profile(seed=5, api_key="k")) as simulator:
            headers = {"authorization": "Bearer k"}
            infos.append(requests.get(simulator.url + "/get_server_info", headers=headers,
                                      timeout=10).json())  # fmt: skip
    assert (infos[0]["version"], infos[0]["api_key"]) == ("0.5.23", "k")
    assert infos[0]["startup_time"] != infos[1]["startup_time"]
    assert len({5, *(found["random_seed"] for found in infos)}) == 3


def test_received(shared: Simulator) -> None:
    """Requests are recorded as they came, reads and refused ones too."""
    requests.get(shared.url + "/v1/models?x=1", headers={"X-Some": "1"}, timeout=10)
    last = shared.received[-1]
    assert (last.method, last.path, last.headers["x-some"]) == ("GET", "/v1/models?x=1", "1")
    requests.post(shared.url + "/nope", data=b"\xff", timeout=10)
    assert shared.received[-1].body == b"\xff"


def test_websocket(shared: Simulator) -> None:
    """/v1/realtime sends each message back."""
    key = base64.b64encode(os.urandom(16)).decode()
    headers = {"connection": "Upgrade", "upgrade": "websocket", "content-length": "0",
               "sec-websocket-key": key, "sec-websocket-version": "13"}  # fmt: skip
    with closing(connect(shared, "/v1/realtime", "", headers, "GET")) as conn:
        stream = conn.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 101 ")
        while stream.readline().strip():
            pass
        conn.sendall(b"\x81\x82\0\0\0\0hi")
        assert stream.read(4) == b"\x81\x02hi"

"""The simulator against recorded SGLang 0.5.23 traffic, then its own switches."""

from __future__ import annotations

import json
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


# ---------------------------------------------------------------- rid, content


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
    ({"include_usage": None, "continuous_usage_stats": False}, False, False),
    ({"include_usage": True}, False, True),
    ({"continuous_usage_stats": True}, True, False),
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


def test_call_in_a_stream(shared: Simulator) -> None:
    """A call's chunks are worded by pydantic; the stream names the stop that JSON hides."""
    whole = post(shared, "/v1/chat/completions", CALL).json()["choices"][0]
    (call,) = whole["message"]["tool_calls"]
    assert [type(value) for value in json.loads(call["function"]["arguments"]).values()] == [
        int, str,
    ]  # fmt: skip
    *events, end = chat_events(shared, CALL)[1:]
    deltas = [delta_of(event)["tool_calls"][0] for event in events]
    assert deltas[0]["id"].startswith("call_") and deltas[0]["id"] != call["id"]
    said = "".join(delta["function"]["arguments"] for delta in deltas)
    assert said == call["function"]["arguments"]
    for k, (event, delta) in enumerate(zip(events, deltas, strict=True)):
        function = {"name": None if k else "add", "arguments": delta["function"]["arguments"]}
        wanted = {"id": None if k else delta["id"], "index": 0, "type": "function"}
        no_role = {"role": None, "content": None, "reasoning_content": None}
        assert json.dumps(delta_of(event)) == json.dumps(
            {**no_role, "tool_calls": [{**wanted, "function": function}]}
        )
        assert event["usage"] is None
    assert delta_of(end) == {"reasoning_content": None} and "usage" not in end
    assert (end["choices"][0]["finish_reason"], whole["finish_reason"]) == ("tool_calls",) * 2
    assert (end["choices"][0]["matched_stop"], whole["matched_stop"]) == (2, None)


# Kinds of the events, and for how many tokens each has log-probabilities.
ROWS: dict[str, tuple[Json, list[tuple[str, int]]]] = {
    "plain": (COLD, [("text", 1)] * 8),
    "thinking": (THINK, [("reasoning", 1)] * 4 + [("text", 1)] * 4),
    "tools": (AUTO, [("text", 0), ("rows", 1)] * 8),
    "thinking and tools": (
        {**THINK, "tools": TOOLS}, [("reasoning", 1)] * 4 + [("text", 0), ("rows", 1)] * 4,
    ),
    "call": (CALL, [("tool", 0)] + [("tool", 0), ("rows", 1)] * 4),
}  # fmt: skip


@each(("body", "expected"), ROWS.values(), ids=ROWS)
def test_logprobs_in_a_stream(
    body: Json, expected: list[tuple[str, int]], shared: Simulator
) -> None:
    """A token's log-probabilities come with its chunk, or behind what the parser of calls told."""
    counting = {"stream_options": {"continuous_usage_stats": True}}
    for more in ({}, counting):
        events = chat_events(shared, {**body, **more, "logprobs": True})
        found = [(kind_of(event), len(rows_of(event))) for event in events]
        assert found == [("role", 0), *expected, ("end", 0)]
        alone = [event for event in events if kind_of(event) == "rows"]
        assert [delta_of(event) for event in alone] == [{"reasoning_content": None}] * len(alone)
        assert [list(event.get("usage", ())) for event in alone] == [COUNTS * bool(more)] * len(
            alone
        )


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


def test_generate_stream(shared: Simulator) -> None:
    """Each event has all so far; counts and what is of the prompt are whole in each."""
    body = {"text": ["one two", "three"], "return_logprob": True, "logprob_start_len": 0,
            "top_logprobs_num": 2, "require_reasoning": True,
            "sampling_params": {"max_new_tokens": 8, "temperature": 0}}  # fmt: skip
    events = events_of(shared, "/generate", body)
    for index, whole in enumerate(post(shared, "/generate", body).json()):
        own = [event for event in events if event["index"] == index]
        assert len(own) == 8 and own[-1]["text"] == whole["text"]
        for count, event in enumerate(own, 1):
            meta, last = event["meta_info"], count == 8
            assert whole["text"].startswith(event["text"])
            assert event["output_ids"] == whole["output_ids"][:count]
            for name in ("output_token_logprobs", "output_top_logprobs"):
                assert meta[name] == whole["meta_info"][name][:count]
            for name in ("input_token_logprobs", "input_top_logprobs", "prompt_tokens"):
                assert meta[name] == whole["meta_info"][name]
            assert meta["output_token_logprobs_length"] == meta["completion_tokens"] == count
            assert meta["reasoning_tokens"] == min(count, 4)
            assert ("response_sent_to_client_ts" in meta) is (count == 1)
            assert ("e2e_latency" in meta) is ("weight_versions" in meta) is last
            assert meta["finish_reason"] == ({"type": "length", "length": 8} if last else None)


# ---------------------------------------------------------------- ends: abort, leaving, stop


SLOW = Profile(tokens_per_second=200, time_to_first_token=0.01)


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


QUEUED = ["id", "finish_reason", "weight_version", "e2e_latency", "weight_versions"]


@each("path", ROUTES)
@each("stream", [False, True])
def test_abort_in_the_queue(path: str, stream: bool) -> None:
    """An abort before the first token tells of no prompt, as SGLang knows none then."""
    body = {**ROUTES[path], "rid": "x", "stream": stream}
    with running() as simulator:
        simulator.faults.append(Fault.HOLD)
        conn = connect(simulator, path, json.dumps(body))
        until(lambda: simulator.waiting == 1)
        assert post(simulator, "/abort_request", {"rid": "x"}).status_code == 200
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

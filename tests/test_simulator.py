"""The simulator against recorded SGLang 0.5.23 traffic, then its own switches."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cached_addon.simulator import Fault, Profile, Simulator, running

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
def locked() -> Iterator[Simulator]:
    with running(Profile(api_key="secret")) as simulator:
        yield simulator


def post(simulator: Simulator, path: str, body: Any, **more: Any) -> requests.Response:
    return requests.post(simulator.url + path, json=body, timeout=10, **more)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do; fails after 10 s."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


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
    """What a stream event is: done, error, usage, role, reasoning, tool, text or end."""
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
    delta = choice.get("delta", {})
    for key, kind in (("tool_calls", "tool"), ("role", "role"), ("content", "text")):
        if key in delta:
            return kind
    return "reasoning" if delta else "text"


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


@pytest.mark.parametrize("name", PLAIN)
def test_answer_like_recorded(name: str, shared: Simulator, locked: Simulator) -> None:
    """Status, content type and structure are the recorded ones; error texts to the letter."""
    asked, real = CORPUS[name]["request"], CORPUS[name]["response"]
    simulator = locked if name.startswith("auth-") else shared
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


@pytest.mark.parametrize("name", STREAMS)
def test_stream_like_recorded(name: str, shared: Simulator) -> None:
    """One event per HTTP chunk, the recorded kinds in the recorded order, with their keys."""
    asked, real = CORPUS[name]["request"], CORPUS[name]["response"]
    head, chunks, ended = http_chunks(read_all(connect(shared, asked["path"], asked["body"])))
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


@pytest.mark.parametrize(("path", "body", "status", "expected"), N_RULES)
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
    ("/v1/chat/completions", {"messages": []}, 400, "Messages cannot be empty."),
    ("/v1/chat/completions", {"messages": "x"}, 400, "Input should be a valid list"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": -1}, 400, "max_new_tokens must be at least 0"),
    ("/v1/chat/completions", {**CHAT, "tool_choice": "required"}, 400, "Tools cannot be empty"),
    ("/v1/chat/completions", {**CHAT, "return_meta_info": True, "stream": True}, 400, "BadRequest"),
    ("/v1/chat/completions", {**CHAT, "rid": ["x"]}, 500, "unhashable type: 'list'"),
    ("/nope", {}, 404, '{"detail":"Not Found"}'),
]


@pytest.mark.parametrize(("path", "body", "status", "text"), REFUSED)
def test_refused(path: str, body: Json, status: int, text: str, shared: Simulator) -> None:
    """Wrong values get the status and the text of SGLang."""
    answer = post(shared, path, body)
    assert (answer.status_code, text in answer.text) == (status, True), answer.text


@pytest.mark.parametrize("path", ROUTES)
def test_content_type(path: str, shared: Simulator) -> None:
    """A body that is not called JSON is refused with a 400."""
    data = json.dumps(ROUTES[path])
    answer = requests.post(shared.url + path, data=data, headers={"content-type": "text/plain"},
                           timeout=10)  # fmt: skip
    text = "Input should be a dictionary" if path == "/generate" else "Unsupported Media Type"
    assert answer.status_code == 400 and text in answer.json()["message"]


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


@pytest.mark.parametrize(("path", "body", "expected"), RIDS)
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


@pytest.mark.parametrize("path", ROUTES)
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


@pytest.mark.parametrize("path", ROUTES)
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


def test_logprobs_of_the_prompt(shared: Simulator) -> None:
    """`logprob_start_len` 0 adds the prompt, whose first token has no probability."""
    body = {**ROUTES["/generate"], "return_logprob": True, "logprob_start_len": 0,
            "top_logprobs_num": 2}  # fmt: skip
    meta = post(shared, "/generate", body).json()["meta_info"]
    assert [row[0] is None for row in meta["input_token_logprobs"]] == [True, False]
    assert meta["input_top_logprobs"][0] is None and len(meta["output_top_logprobs"][7]) == 2


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


# ---------------------------------------------------------------- faults


def reasons(path: str, value: Any) -> list[str]:
    if path == "/generate":
        return [item["meta_info"]["finish_reason"]["type"] for item in value]
    return [choice["finish_reason"] for choice in value["choices"]]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.HOLD])
def test_fault(fault: Fault, path: str) -> None:
    """Each fault spoils one answer; the next one is whole."""
    body = heated(ROUTES[path], 0, 2)
    with running() as simulator:
        simulator.faults.append(fault)
        _, _, raw = read_all(connect(simulator, path, json.dumps(body))).partition(b"\r\n\r\n")
        assert (simulator.samples, simulator.running) == {
            Fault.TWO_WEIGHTS: (2, 0), Fault.TOO_FEW: (1, 0)}.get(fault, (0, 0))  # fmt: skip
        whole = post(simulator, path, body)
        assert whole.status_code == 200 and reasons(path, whole.json()) == ["length"] * 2
        if fault is Fault.ERROR_503:
            assert raw == (b'{"object":"error","message":"The request queue is full.",'
                           b'"type":"503","param":null,"code":503}')  # fmt: skip
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
            ends = [(span["start"], span["end"]) for span in place["weight_versions"]]
            assert ends == [(0, 4), (4, 8)]


@pytest.mark.parametrize("path", ROUTES)
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


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("call", [{"rid": "x"}, {"abort_all": True}])
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


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
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


def test_pace() -> None:
    """Samples take time to first token plus tokens over rate, and run side by side."""
    with running(Profile(time_to_first_token=0.05, tokens_per_second=100)) as simulator:
        began = time.monotonic()
        post(simulator, "/generate", heated({"text": "a", "sampling_params": {
            "max_new_tokens": 10}}, 1, 4))  # fmt: skip
        assert 0.149 < time.monotonic() - began < 0.45


def test_port_taken() -> None:
    """A taken port is an OSError on entry."""
    with running() as simulator:
        port = int(simulator.url.rsplit(":", 1)[1])
        with pytest.raises(OSError), running(port=port):
            pass


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


@pytest.mark.parametrize(("keys", "method", "path", "given", "status"), AUTH)
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
    assert (infos[0]["version"], infos[0]["random_seed"], infos[0]["api_key"]) == ("0.5.23", 5, "k")
    assert infos[0]["startup_time"] != infos[1]["startup_time"]


def test_received(shared: Simulator) -> None:
    """Requests are recorded as they came, reads and refused ones too."""
    requests.get(shared.url + "/v1/models?x=1", headers={"X-Some": "1"}, timeout=10)
    last = shared.received[-1]
    assert (last.method, last.path, last.headers["x-some"]) == ("GET", "/v1/models?x=1", "1")
    requests.post(shared.url + "/nope", data=b"\xff", timeout=10)
    assert shared.received[-1].body == b"\xff"


def test_trailing_slash(shared: Simulator) -> None:
    """A trailing slash is redirected with an absolute location."""
    answer = post(shared, "/generate/?a=1", {}, allow_redirects=False)
    assert answer.status_code == 307
    assert answer.headers["location"] == f"{shared.url}/generate?a=1"


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

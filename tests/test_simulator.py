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
from sglang_cached_addon.dialects import installed
from tests.conftest import until
from tests.dialects.streams import record
from tests.simulator import Fault, Profile, Simulator, lists, running
from tests.tables import each

Json = dict[str, Any]
CORPUS = {path.stem: json.loads(path.read_text("utf-8"))
          for path in sorted((Path(__file__).parent / "corpus").glob("*.json"))}  # fmt: skip
OUT_OF_SCOPE = {
    "generate-unknown-param": "any sampling parameter is taken",
    "embeddings-error": "no embedding route",
    "messages-image": "pictures are not looked at",
    "messages-too-long-stream": "what is too long is refused before a stream begins",
    **dict.fromkeys(
        (
            "messages-thinking",
            "messages-thinking-stream",
            "messages-beta-stream",
            "messages-not-thinking-stream",
            "messages-tools-cut-stream",
        ),
        "the recorded server thinks first, and always",
    ),
    "ollama-chat": "no Ollama route",
    "options-chat": "no CORS",
    **dict.fromkeys(
        (
            "responses-background",
            "responses-previous",
            "responses-request-id",
            "responses-web-search",
            "responses-other-model",
            "responses-logprobs",
            "responses-logprobs-stream",
            "responses-custom",
            "responses-custom-stream",
            "responses-tools-cut",
            "responses-tools-cut-stream",
            "responses-too-long-stream",
        ),
        "what is never cached, and what few servers do, is not done",
    ),
    **dict.fromkeys(
        ("responses-tools", "responses-tools-stream"), "the recorded model has called twice"
    ),
    **{
        f"responses-{kind}{form}": "the recorded server thinks first, or makes a summary of it"
        for kind in ("thinking", "summary")
        for form in ("", "-stream")
    },
    **dict.fromkeys(
        (
            "responses-thinking-tools-stream",
            "responses-thinking-schema-stream",
            "responses-not-thinking-stream",
        ),
        "the recorded server thinks first, and always",
    ),
    "score": "no scoring route",
} | {
    name: "texts and ids of lists only as e2e tests need them"
    for name, pair in CORPUS.items()
    if pair["request"]["path"] in lists.ROUTES and name not in ("tokenize", "embeddings-error")
}
OTHER_LENGTH = {
    "bytes": "bytes of a word",
    "tokens": "tokens of a prompt, when all there is is a prompt",
    "capture_batch_sizes": "sizes of a real server",
}
OTHER_NULL = {"cached_tokens_details": "null only while nothing of the prompt was cached"}
NOT_TOLD = {"embedding"}
IN_SCOPE = [name for name in CORPUS if name not in OUT_OF_SCOPE]
ASKED = [name for name in IN_SCOPE if '"stream": true' in str(CORPUS[name]["request"]["body"])]
PLAIN = [name for name in IN_SCOPE if name not in ASKED]
NAMED = [name for name in ASKED if name.startswith(("messages-", "responses-"))]
STREAMS = [name for name in ASKED if name not in NAMED]
CHAT = {"messages": [{"role": "user", "content": "What is 2+2?"}]}
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
    return requests.post(simulator.url + path, json=body, timeout=30, **more)


def connect(simulator: Simulator, path: str, body: str, headers: Json | None = None,
            method: str = "POST") -> socket.socket:  # fmt: skip
    """A connection that has sent one request."""
    host, port = simulator.url.removeprefix("http://").split(":")
    conn = socket.create_connection((host, int(port)), timeout=30)
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
        real = {key: value for key, value in real.items() if key not in NOT_TOLD}
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
    assert set(OUT_OF_SCOPE) <= set(CORPUS)
    assert len(PLAIN) > 45 and len(STREAMS) > 8


GENERATED = [name for name in PLAIN if CORPUS[name]["response"]["status"] == 200
             and CORPUS[name]["request"]["path"] in ROUTES]  # fmt: skip


@each("name", PLAIN)
def test_answer_like_recorded(name: str, shared: Simulator, locked: Simulator) -> None:
    """Status, content type and structure are the recorded ones."""
    is_like_recorded(name, locked if name.startswith("auth-") else shared)


@each("name", GENERATED)
def test_small_answer_like_recorded(name: str, small: demonstration.Simulator) -> None:
    """So are the answers of the simulator that users start."""
    is_like_recorded(name, small)


def is_like_recorded(name: str, simulator: demonstration.Simulator) -> None:
    asked, real = CORPUS[name]["request"], CORPUS[name]["response"]
    data = None if asked["body"] is None else asked["body"].encode()
    own = requests.request(asked["method"], simulator.url + asked["path"], data=data,
                           headers=asked["headers"], timeout=30)  # fmt: skip
    recorded = {key.lower(): value for key, value in real["headers"]}
    assert own.status_code == real["status"]
    for header in ("content-type", "allow", "vary"):
        assert own.headers.get(header) == recorded.get(header)
    assert own.headers["server"] == "sglang-simulator"
    bare = not recorded.get("content-type") or asked["method"] == "HEAD"
    if bare:
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


def named(text: str) -> list[tuple[str, Any]]:
    """The events of a stream whose events have names, each once where it comes again and again:
    what it is of, and its data."""
    found: list[tuple[str, Any]] = []
    for event in text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        part = value.get("delta") or value.get("content_block")
        kind = f"{value['type']} {part.get('type', '') if isinstance(part, dict) else ''}"
        if not found or found[-1][0] != kind:
            found.append((kind, value))
    return found


@each("name", NAMED)
def test_named_stream_like_recorded(name: str, shared: Simulator) -> None:
    """One event per HTTP chunk, the recorded kinds in the recorded order, with their keys."""
    asked, real = CORPUS[name]["request"], CORPUS[name]["response"]
    head, chunks, ended = http_chunks(read_all(connect(shared, asked["path"], asked["body"])))
    assert head.startswith("HTTP/1.1 200 ") and "text/event-stream; charset=utf-8" in head
    assert ended
    assert [chunk.count("\n\n") for chunk in chunks] == [1] * len(chunks)
    theirs, ours = named(real["body"]), named("".join(chunks))
    assert [kind for kind, _ in theirs] == [kind for kind, _ in ours]
    for (_, real_event), (_, own_event) in zip(theirs, ours, strict=True):
        assert differences(real_event, own_event) == []


# ---------------------------------------------------------------- rid, content


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


def test_rid(shared: Simulator) -> None:
    """A client's id is kept, and numbered where there is a list of prompts."""
    for path, body, found in (
        ("/v1/completions", {"prompt": ["a"], "rid": "x"}, "x_0"),
        ("/v1/chat/completions", {**CHAT, "rid": "x"}, "x"),
    ):
        assert post(shared, path, body).json()["id"] == found, path


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


# ---------------------------------------------------------------- streams


ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
AUTO = {"tools": [{"type": "function", "function": {"name": "add", "parameters": ADD}}]}
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
COUNTS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
ASKED: dict[str, list[Json]] = {
    "/generate": [
        {"text": ["one two", "three"], "return_logprob": True, "logprob_start_len": 0,
         "top_logprobs_num": 2, "require_reasoning": True},
    ],
    "/v1/completions": [
        {"prompt": ["one two", "three"], "n": 2, "echo": echo, "logprobs": 2, **COUNTS}
        for echo in (False, True)
    ],
    "/v1/chat/completions": [
        {"n": 2, "logprobs": True, **COUNTS, **more}
        for more in ({}, THINK, AUTO, THINK | AUTO, {**AUTO, "tool_choice": "required"})
    ],
}  # fmt: skip
OWN = {"id", "created", "metadata", "e2e_latency", "response_sent_to_client_ts", "cached_tokens"}
"""What differs from one answer to an equal one."""


def common(value: Any) -> Any:
    """An answer without what is its own."""
    if isinstance(value, list):
        return [common(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {k: common(v) for k, v in value.items() if k not in OWN and not k.endswith("details")}


@each("path", ROUTES)
def test_stream_comes_to_the_answer(path: str, shared: Simulator) -> None:
    """What a stream says in pieces is what the greedy answer says, with stop strings too."""
    dialect = installed()["POST", path]
    plain = heated(ROUTES[path], 0, 1)
    inner = {**plain.get("sampling_params", plain), "stop": [texts(shared, path, plain)[0][9:14]]}
    stopped = {**plain, "sampling_params": inner} if "text" in plain else inner
    more = [heated({**ROUTES[path], **given}, 0, given.get("n", 1)) for given in ASKED[path]]
    for body in (plain, stopped, *more):
        whole = post(shared, path, body).json()
        asked = {**body, "stream": True}
        events = parsed(post(shared, path, asked).text)
        assert events.pop() == "[DONE]"
        if path != "/generate" and "stream_options" not in body:
            events.append({**events[0], "choices": [], "usage": whole["usage"]})
        call = dialect.read(asked)
        stored = [sample.answer for sample in record(dialect, asked, events)]
        pools = [stored[i * call.n : (i + 1) * call.n] for i in range(len(call.items))]
        assert common(json.loads(dialect.write(call, pools))) == common(whole)


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
        idle.get(simulator.url + "/health", timeout=30)
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


# ---------------------------------------------------------------- other routes

"""The proxy in front of an upstream that can be told to misbehave, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
import requests
from tornado.ioloop import IOLoop
from tornado.websocket import websocket_connect

from sglang_cached_addon.dialects import installed
from tests.conftest import Proxy, StartProxy, cache_status, corpus, until
from tests.e2e.calls import (
    BODIES,
    CALLS,
    GENERATE,
    PARAMS,
    Stream,
    ask,
    asking,
    post,
    sampled,
    sampling,
    stream,
)
from tests.hearing import Heard, hearing
from tests.simulator import Fault, Simulator
from tests.tables import each

FAULTS = {
    Fault.ERROR_503: (503, "status"),
    Fault.ABORT: (200, "abort"),
    Fault.TWO_WEIGHTS: (200, "mixed-weights"),
    Fault.NOT_JSON: (200, "unreadable-answer"),
    Fault.ERROR_BODY: (200, "error"),
    Fault.CUT: (502, "cut"),
}
STREAM_FAULTS = {
    Fault.ABORT: "abort",
    Fault.ERROR_BODY: "error",
    Fault.ERROR_EVENT: "error",
    Fault.TOO_FEW: "unfinished",
    Fault.CUT: "cut",
}


@contextmanager
def unstored(proxy: Proxy, reason: str) -> Iterator[None]:
    """What is answered meanwhile is told of with its reason, and is not there afterwards."""
    post(proxy, "/cache/clear", None)
    told, before = proxy.log.count(f"({reason})"), proxy.stats()["not_stored"]
    yield
    until(lambda: proxy.log.count(f"({reason})") == told + 1)
    stats = proxy.stats()
    assert stats["total_responses"] == 0
    assert stats["not_stored"] == {**before, reason: before.get(reason, 0) + 1}


@each("path", BODIES)
@each("fault", FAULTS, ids=str)
def test_never_stored(path: str, fault: Fault, simulator: Simulator, proxy: Proxy) -> None:
    """A bad answer reaches the client with its reason, and is not there for the next one."""
    status, reason = FAULTS[fault]
    with unstored(proxy, reason):
        simulator.faults.append(fault)
        bad = post(proxy, path, BODIES[path])
        assert bad.status_code == status
        assert bad.headers["X-Cache"] == "MISS"
        assert "stored" not in bad.headers["Cache-Status"]
        assert f"detail={reason}" in bad.headers["Cache-Status"]
    kinds = [post(proxy, path, BODIES[path]).headers["X-Cache"] for _ in range(2)]
    assert kinds == ["MISS", "HIT"]


@each("path", BODIES)
@each("fault", STREAM_FAULTS, ids=str)
def test_stream_never_stored(path: str, fault: Fault, simulator: Simulator, proxy: Proxy) -> None:
    """A stream that went wrong reaches the client as it is, and is not there for the next one."""
    body = {**sampling(path, 2), "stream": True}
    with unstored(proxy, STREAM_FAULTS[fault]):
        simulator.faults.append(fault)
        if fault is Fault.CUT:
            with closing(Stream(proxy, path, body)) as client, pytest.raises(ConnectionError):
                client.begin().rest()
        else:
            simulator.faults.append(fault)
            direct = requests.post(simulator.url + path, json=body, timeout=30).text
            headers, chunks = stream(proxy, path, body)
            assert headers["x-cache"] == "MISS"
            assert len(chunks) == direct.count("data: ")
    assert stream(proxy, path, body)[0]["x-cache"] == "MISS"


def test_one_abort_in_a_batch(simulator: Simulator, proxy: Proxy) -> None:
    """An abort anywhere in an array keeps the whole of it out."""
    simulator.faults.append(Fault.ABORT)
    body = {"text": ["a", "b"], "sampling_params": PARAMS}
    assert post(proxy, "/generate", body).headers["Cache-Status"].endswith("detail=abort")
    assert proxy.stats()["total_responses"] == 0


@each(
    ("fault", "status"),
    [(Fault.ERROR_503, 503), (Fault.NOT_JSON, 200), (Fault.TOO_FEW, 200), (Fault.ABORT, 200)],
)
def test_partial_that_fails(fault: Fault, status: int, simulator: Simulator, proxy: Proxy) -> None:
    """When the missing samples cannot be had, the client is told what upstream says to it, and
    nothing is spoiled."""
    post(proxy, "/cache/clear", None)
    one = BODIES["/generate"]
    three = {**one, "sampling_params": {**PARAMS, "n": 4}}
    first = post(proxy, "/generate", one).json()
    simulator.faults.append(fault)
    answer = post(proxy, "/generate", three)
    assert answer.status_code == status
    if fault in (Fault.NOT_JSON, Fault.TOO_FEW):  # upstream answers the client's own call
        assert answer.headers["X-Cache"] in ("BYPASS", "PARTIAL")
        assert len(answer.json()) == 4
    else:
        assert answer.headers["X-Cache"] == "PARTIAL"
        assert answer.json()
        assert proxy.stats()["total_responses"] == 1
    again = post(proxy, "/generate", three)
    assert again.json()[0]["text"] == first["text"]
    assert len(again.json()) == 4


def test_one_upstream_call_for_a_ragged_batch(simulator: Simulator, proxy: Proxy) -> None:
    """Items that are short of 1, 2 and 3 samples are one call, of six prompts with n=1."""
    for text, n in (("a", 2), ("b", 1)):
        params = {**PARAMS, "n": n}
        post(proxy, "/generate", {"text": text, "sampling_params": params})
    body = {"text": ["a", "b", "c"], "sampling_params": {**PARAMS, "n": 3}}
    post(proxy, "/generate", body)
    assert sampled(simulator)[-1] == {
        **body,
        "text": ["a", "b", "b", "c", "c", "c"],
        "sampling_params": {**PARAMS, "n": 1},
    }
    assert len(sampled(simulator)) == 3
    assert simulator.samples == 9


def test_what_goes_upstream(simulator: Simulator, proxy: Proxy) -> None:
    """Only the unknown items go, with their own values, and never the client's rid."""
    simulator.become(lora_paths=("x=/x", "y=/y", "z=/z"))
    known = {"text": "a", "lora_path": "x", "unknown_field": {"kept": 1}}
    post(proxy, "/generate", {**known, "sampling_params": PARAMS})
    body = {
        "text": ["a", "b", "c"],
        "lora_path": ["x", "y", "z"],
        "rid": ["r1", "r2", "r3"],
        "unknown_field": {"kept": 1},
        "sampling_params": PARAMS,
    }
    post(proxy, "/generate", body)
    sent = sampled(simulator)[-1]
    assert {**sent, "rid": None} == {
        **body, "text": ["b", "c"], "lora_path": ["y", "z"], "rid": None
    }  # fmt: skip
    assert len(set(sent["rid"])) == 2
    assert not set(sent["rid"]) & set(body["rid"])
    plain = b'{ "text" : "as it came" ,"sampling_params":{"max_new_tokens":2}}'
    headers = {"Content-Type": "application/json"}
    requests.post(f"{proxy.url}/generate", data=plain, headers=headers, timeout=30)
    assert plain in [received.body for received in simulator.received]


def test_abort_of_a_shared_rid(simulator: Simulator, proxy: Proxy) -> None:
    """Two calls under one rid are both ended by an abort of it."""
    bodies = [{"text": f"held {i}", "rid": "twin", "sampling_params": PARAMS} for i in (0, 1)]
    simulator.faults.extend([Fault.HOLD, Fault.HOLD])
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post, proxy, "/generate", body) for body in bodies]
        until(lambda: simulator.running == 2)
        post(proxy, "/abort_request", {"rid": "twin"})
        kinds = {a.result().json()["meta_info"]["finish_reason"]["type"] for a in answers}
    assert kinds == {"abort"}


def test_restart(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The same request hits after a restart, with the same bytes, of streams, too."""
    first = start_proxy(simulator.url)
    calls = [(path, asking(path, f"{form}", **form)) for path, form in CALLS]
    answers = [ask(first, path, body).content for path, body in calls]
    assert first.stop() == 0
    second = start_proxy(simulator.url)
    assert "(6 entries, 6 samples)" in second.banner
    for (path, body), content in zip(calls, answers, strict=True):
        answer = post(second, path, body)
        assert (answer.headers["X-Cache"], answer.content) == ("HIT", content)


def test_clear(simulator: Simulator, proxy: Proxy) -> None:
    """POST /cache/clear empties memory and file, and says how much it was."""
    post(proxy, "/generate", BODIES["/generate"])
    assert proxy.stats()["num_keys"] == 1
    answer = post(proxy, "/cache/clear", None)
    assert answer.json() == {"status": "success", "cleared_keys": 1, "cleared_responses": 1}
    stats = proxy.stats()
    assert (stats["num_keys"], stats["total_responses"], stats["pending_writes"]) == (0, 0, 0)
    with open(stats["cache_file"], "rb") as journal:
        assert journal.read() == b""
    assert post(proxy, "/generate", BODIES["/generate"]).headers["X-Cache"] == "MISS"


@each(
    ("method", "path", "allow"),
    [
        ("POST", "/cache/stats", "GET, HEAD"),
        ("DELETE", "/cache/info", "GET, HEAD"),
        ("GET", "/cache/clear", "POST"),
        ("PUT", "/health", "GET, HEAD"),
    ],
)
def test_wrong_method(method: str, path: str, allow: str, proxy: Proxy) -> None:
    """Our own routes refuse other methods, and say which they take."""
    answer = requests.request(method, proxy.url + path, timeout=30)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allow)
    assert allow in answer.json()["error"]["message"]


def test_info(simulator: Simulator, proxy: Proxy) -> None:
    """/cache/info tells how the proxy is set up, beside the counts of /cache/stats."""
    post(proxy, "/generate", BODIES["/generate"])
    stats = proxy.stats()
    info = proxy.info()
    assert {name: info[name] for name in stats if name != "pending_writes"} == {
        name: value for name, value in stats.items() if name != "pending_writes"
    }
    assert info["cache_dir"] in info["cache_file"]
    assert info["upstream"] == simulator.url
    stored = {name: count for name, count in info["dialects"].items() if count}
    assert stored == {"sglang-generate": 1}
    assert info["dialects"].keys() == {dialect.name for dialect in installed().values()}
    assert info["version"]
    assert info["settings"]["quiet"] is False
    until(lambda: proxy.info()["file_bytes"])


def test_health(simulator: Simulator, proxy: Proxy) -> None:
    """/health is the proxy's own, with upstream's state in the body."""
    answer = requests.get(f"{proxy.url}/health", timeout=30)
    assert answer.status_code == 200
    upstream = {"url": simulator.url, "state": "up"}
    found = {"status": "healthy", "sglang_url": simulator.url, "upstream": upstream}
    assert answer.json() == found
    assert requests.head(f"{proxy.url}/health", timeout=30).content == b""


def test_log_lines(simulator: Simulator, proxy: Proxy) -> None:
    """One line a request: kind, path, have/want, time, reason."""
    for n in (1, 1, 2):
        post(proxy, "/generate", {"text": "a", "sampling_params": {**PARAMS, "n": n}})
    post(proxy, "/generate", {"text": "a", "stream": "odd", "sampling_params": PARAMS})
    post(proxy, "/generate", {"text": "s", "stream": True, "sampling_params": PARAMS})
    requests.get(f"{proxy.url}/model_info", timeout=30)
    # The last line of a relayed answer may be written after its last byte.
    until(lambda: "/model_info" in proxy.log)
    lines = [line for line in proxy.log.splitlines() if line.startswith("[Cache")]
    starts = [
        "[Cache miss] /generate 0/1 ",
        "[Cache hit] /generate 1/1 ",
        "[Cache partial] /generate 1/2 ",
        "[Cache bypass] /generate ",
        "[Cache miss] /generate 0/1 ",
        "[Cache bypass] /model_info ",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)
        assert " ms" in line
    assert lines[3].endswith("(malformed)")
    assert lines[4].endswith(" ms")
    assert lines[5].endswith("(route)")


TARGETS = (
    b"/v1/models?api_key=secret",
    b"/generate?key=secret",
    b"/health?key=secret",
    b"/v1/\x1b]0;title\x07",
    b"/v1/\x9b2J",
    b"/v1/%0a%5bCache hit%5d?secret",
    b"/v1/\xe2\x80\xae?secret",
    b"http://user:secret@x/v1/models?secret",
)


def test_log_tells_no_secrets(simulator: Simulator, proxy: Proxy) -> None:
    """The log has neither the keys of a query nor what tells a terminal what to do."""
    for method in (b"GET", b"POST"):
        for target in TARGETS:
            with proxy.connect(30) as client:
                client.sendall(
                    method + b" " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                )
                assert client.recv(65536).startswith(b"HTTP/1.1 ")
    until(lambda: proxy.log.count("/v1/models") >= 2)
    assert "secret" not in proxy.log
    assert all(line.isprintable() for line in proxy.log.splitlines())


def test_quiet(simulator: Simulator, start_proxy: StartProxy) -> None:
    """--quiet logs no requests."""
    proxy = start_proxy(simulator.url, "--quiet")
    post(proxy, "/generate", BODIES["/generate"])
    assert proxy.log == ""


BYPASSES: dict[str, dict[str, Any]] = {
    "content-type": {"headers": {"Content-Type": "text/plain"}},
    "encoded": {"headers": {"Content-Encoding": "gzip"}},
    "cross-origin": {"headers": {"Origin": "http://example.com"}},
    "header": {"headers": {"X-Sglext-Return-Output-Ids": "1"}},
    "query": {"path": "/generate?x=1"},
    "state": {"body": {"session_params": {"id": "s"}}},
    "disaggregation": {"body": {"bootstrap_room": 7}},
    "media-by-reference": {"body": {"image_data": "http://example.com/a.png"}},
    "beam": {"body": {"sampling_params": {"beam_width": 4}}},
    "malformed": {"body": {"text": 7}},
    "stream": {"body": {"stream": True, "return_hidden_states": True}},
}


def bypassed(proxy: Proxy, reason: str, **more: str) -> requests.Response:
    """The answer to a call that is passed on for that reason."""
    case = BYPASSES[reason]
    body = {**BODIES[GENERATE], **case.get("body", {})}
    return post(
        proxy, case.get("path", GENERATE), body, headers={**case.get("headers", {}), **more}
    )


@each("reason", BYPASSES)
def test_bypass(reason: str, simulator: Simulator, proxy: Proxy) -> None:
    """What is not understood in full goes upstream untouched, each time, with its reason."""
    before = proxy.stats()["bypasses"]
    simulator.received.clear()
    for _ in range(2):
        answer = bypassed(proxy, reason)
        assert answer.headers["X-Cache"] == "BYPASS"
        status = "" if answer.status_code == 200 else f" fwd-status={answer.status_code};"
        said = f"sglang-cached; fwd=bypass;{status} detail={reason}"
        assert cache_status(answer.headers) == said
    body = answer.request.body
    assert [r.body for r in simulator.received if r.method == "POST"] == [body, body]
    assert proxy.stats()["bypasses"] == {**before, reason: 2}


def test_large_upload(simulator: Simulator, proxy: Proxy) -> None:
    """A body of many megabytes to another route passes through whole."""
    body = b"x" * (24 << 20)
    answer = requests.post(f"{proxy.url}/upload", data=body, timeout=60)
    assert answer.status_code == 404  # upstream's word
    assert len(simulator.received[-1].body) == len(body)


def test_websocket(simulator: Simulator, proxy: Proxy) -> None:
    """WebSockets pass through, in runs, too."""

    async def talk() -> Any:
        found = []
        for path in ("/v1/realtime", "/run/a/v1/realtime"):
            socket = await websocket_connect(proxy.url.replace("http", "ws") + path)
            await socket.write_message("hello")
            found.append(await socket.read_message())
        return found

    assert IOLoop(make_current=False).run_sync(talk, timeout=30) == ["hello", "hello"]


def moved(heard: Heard) -> bytes:
    """What Starlette answers where a slash is one too many, and where it is not, a sample."""
    if heard.target.startswith("/model_info"):
        return whole("200 OK", json.dumps({"model_path": "m", "weight_version": "default"}))
    if heard.target.startswith("/server_info"):
        return whole("200 OK", json.dumps({"version": "0.5.23"}))
    if heard.target == "/generate" and b"moved" not in heard.body:
        (pair,) = corpus("generate-n1")
        return whole("200 OK", pair["response"]["body"])
    place = f"http://{heard.fields['host']}/elsewhere?{heard.target}"
    return whole(
        "307 Temporary Redirect", "", f"Location: {place}\r\nContent-Location: {place}\r\n"
    )


def whole(status: str, body: str, fields: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{fields}"
    return f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode()


def test_redirects_lead_back(start_proxy: StartProxy) -> None:
    """A client that follows a redirect comes back to the proxy."""
    with hearing() as upstream:
        upstream.answer = moved
        proxy = start_proxy(upstream.url)
        first = post(proxy, "/generate", BODIES["/generate"])
        assert first.headers["X-Cache"] == "MISS"
        for method, path, body in (
            ("GET", "/v1/models/", None),
            ("POST", "/v1/embeddings/", {"input": "a"}),
            ("POST", "/generate", {**BODIES["/generate"], "text": "moved"}),
            ("POST", "/generate", {**BODIES["/generate"], "text": "moved", "stream": True}),
            ("POST", "/v1/completions", BODIES["/v1/completions"]),
        ):
            answer = requests.request(
                method, proxy.url + path, json=body, allow_redirects=False, timeout=30
            )
            assert answer.status_code == 307
            assert answer.headers["Location"] == f"/elsewhere?{path}"
            assert answer.headers["Content-Location"] == f"/elsewhere?{path}"
        authority = upstream.url.removeprefix("http://")
        assert {heard.fields["host"] for heard in upstream.heard} == {authority}

"""What is large: it is answered as upstream does, and holds nobody else up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
import requests

from tests.conftest import Proxy, StartProxy, corpus
from tests.e2e.calls import post
from tests.hearing import Answering, Upstream, serving
from tests.replayer import INFO, replaying

pytestmark = pytest.mark.one_way

JSON = {"Content-Type": "application/json"}


def large_bodies() -> Iterator[tuple[str, bytes]]:
    """Bodies that take longer to read than others may be kept waiting, and what they are."""
    row = b"[%b]" % b",".join([b"0.0123456789"] * 4096)
    yield "100,000 prompts", b'{"text":[%b]}' % b",".join([b'"a"'] * 100_000)
    yield "embeddings", b'{"input_embeds":[%b]}' % b",".join([row] * 170)  # 9 MB
    yield "a long text", b'{"text":"%b"}' % (b"a b," * 1_500_000)
    yield "lists in lists", b'{"text":"a","x":[%b1]}' % (b"[]," * 1_000_000)


def worked(proxy: Proxy) -> float:
    """Seconds of processor time that the proxy has used."""
    stat = Path(f"/proc/{proxy.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def hitting(proxy: Proxy, body: object, path: str = "/generate") -> Iterator[list[float]]:
    """Another client, whose answer is stored: the seconds for which the proxy has worked while each
    of its hits was waited for. A busy machine makes the wait longer, and not the work."""
    over, seconds = Event(), [0.0]

    def hit() -> None:
        with requests.Session() as session:
            while not over.wait(0.01):
                began = worked(proxy)
                answer = session.post(f"{proxy.url}{path}", json=body, timeout=60)
                seconds.append(worked(proxy) - began)
                assert answer.headers["X-Cache"] == "HIT"

    thread = Thread(target=hit)
    thread.start()
    try:
        yield seconds
    finally:
        over.set()
        thread.join()


def test_large_bodies(start_proxy: StartProxy) -> None:
    """Hits of others do not wait while a large body is answered; reading it takes seconds."""
    (known,) = corpus("generate-n1")
    with replaying() as upstream:
        upstream.pair = known
        proxy = start_proxy(upstream.url, "--poll-seconds", "3600")
        asked = json.loads(known["request"]["body"])
        assert post(proxy, "/generate", asked).headers["X-Cache"] == "MISS"
        upstream.pair = {"response": {"status": 400, "headers": [], "body": '{"error":"no"}'}}
        for name, body in large_bodies():
            with hitting(proxy, asked) as seconds:
                answer = requests.post(f"{proxy.url}/generate", data=body, headers=JSON, timeout=60)
            assert (answer.status_code, answer.text) == (400, '{"error":"no"}'), name
            assert upstream.received.pop() == body, name
            assert "detail=too-large" in answer.headers["Cache-Status"], name
            assert max(seconds) < 0.5, name


class Embedder(Upstream):
    """An upstream whose vectors are made of the ids that they are for."""

    def __init__(self) -> None:
        super().__init__(_Embedding)
        self.sizes: list[int] = []
        """How many inputs each call had."""


class _Embedding(Answering):
    server: Embedder

    def do_GET(self) -> None:
        found = {"/model_info": {"model_path": "m"}, "/server_info": {"version": "0.5.23"}}
        self.reply(200 if self.path in found else 404, found.get(self.path, {}))

    def do_POST(self) -> None:
        given = json.loads(self.body())["input"]
        if given != ".":
            self.server.sizes.append(len(given))
        self.reply(200, vectors_of([[0]] if given == "." else given))


def vectors_of(lists: list[list[int]]) -> dict[str, object]:
    """Its answer to lists of ids."""
    rows = [
        {"embedding": [ids[0] / 8, 0.5], "index": k, "object": "embedding"}
        for k, ids in enumerate(lists)
    ]
    count = sum(map(len, lists))
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
    return {"data": rows, "model": "m", "object": "list", "usage": usage}


def test_long_lists(start_proxy: StartProxy) -> None:
    """Hits of others do not wait while a list of 100,000 inputs is answered, new or stored; what is
    short of it is asked for in portions, and all of it is the answer that upstream would give."""
    lists, small = [[k] for k in range(100_000)], {"model": "m", "input": [[7]]}
    with serving(Embedder()) as upstream:
        proxy = start_proxy(upstream.url, "--poll-seconds", "3600")
        assert post(proxy, "/v1/embeddings", small).headers["X-Cache"] == "MISS"
        proxy.stats()
        for outcome in ("PARTIAL", "HIT"):
            with hitting(proxy, small, "/v1/embeddings") as seconds:
                answer = post(proxy, "/v1/embeddings", {**small, "input": lists}, timeout=600)
            assert (answer.status_code, answer.headers["X-Cache"]) == (200, outcome)
            assert answer.json() == vectors_of(lists)
            assert max(seconds) < 0.5, outcome
            proxy.stats()
        assert max(upstream.sizes) <= 1024 and sum(upstream.sizes) == len(lists)


ROW = {"token": " word", "logprob": -0.123456789, "bytes": [32, 119], "top_logprobs": []}


def large_answers(path: str) -> tuple[object, object]:
    """A small answer of an API, and one for sixteen of some 15 MB."""
    rows, numbers = [ROW] * 12_000, [[-0.123456789, 123, None]] * 45_000
    if path == "/generate":
        meta = {"id": "x", "finish_reason": {"type": "stop"}, "prompt_tokens": 1}
        told = {**meta, "completion_tokens": 1, "output_token_logprobs": numbers}
        return {"text": "a", "meta_info": meta}, [{"text": "a", "meta_info": told}] * 16
    said = {"text": "a"} if path == "/v1/completions" else {"message": {"content": "a"}}
    choice = {"index": 0, **said, "finish_reason": "stop", "token_ids": [1]}
    named = {"id": "x", "object": "y", "created": 1, "model": "m"}
    choices = [{**choice, "index": k, "logprobs": {"content": rows}} for k in range(16)]
    usage = {"prompt_tokens": 1, "total_tokens": 17, "completion_tokens": 16}
    return {**named, "choices": [choice]}, {**named, "choices": choices, "usage": usage}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="of Linux alone")
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_memory_while_an_answer_lands(
    path: str, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large answer takes three times its size, samples and all, and little more."""
    server = {"version": "0.5.23", "startup_time": 1.5}
    heads = [["Content-Type", "application/json"]]

    def pair(answer: object) -> dict[str, object]:
        body = json.dumps(answer, separators=(",", ":"))
        return {"response": {"status": 200, "headers": heads, "body": body}}

    monkeypatch.setitem(INFO, "/server_info", pair(server))
    small, large = map(pair, large_answers(path))
    asked = {"text": "q"} if path == "/generate" else {"model": "m", "prompt": "q"}
    if path.endswith("chat/completions"):
        asked = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
    with replaying() as upstream:
        upstream.pair = small
        proxy = start_proxy(upstream.url)
        assert post(proxy, path, {**asked, "temperature": 0}).headers["X-Cache"] == "MISS"
        upstream.pair = large
        before = proxy.memory()
        n = {"sampling_params": {"n": 16}} if path == "/generate" else {"n": 16, "logprobs": 1}
        answer = post(proxy, path, {**asked, **n})
        assert "stored" in answer.headers["Cache-Status"]
        size = len(answer.content)
        assert (proxy.peak() - before) / size < 3.6

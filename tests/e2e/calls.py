"""Calls of the three APIs, and what is read of their answers, for the end-to-end tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, cache_status
from tests.simulator import Simulator

PARAMS = {"temperature": 0.9, "max_new_tokens": 8}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"text": "one two", "sampling_params": PARAMS},
    "/v1/completions": {"model": "m", "prompt": "one two", "max_tokens": 8},
    "/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "one two"}],
        "max_tokens": 8,
    },
}
GENERATE, COMPLETIONS, CHAT = BODIES
FORMS: dict[str, dict[str, Any]] = {"json": {}, "stream": {"stream": True}}
CALLS = [(path, form) for path in BODIES for form in FORMS.values()]
USAGE = {"include_usage": True}
DONE = b"data: [DONE]\n\n"

forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
paths = pytest.mark.parametrize("path", BODIES)


def post(proxy: Proxy, path: str, body: Any, **kwargs: Any) -> requests.Response:
    return proxy.session.post(proxy.url + path, json=body, **{"timeout": 30, **kwargs})


def ask(
    proxy: Proxy, path: str, body: Any, headers: Mapping[str, str] | None = None
) -> requests.Response:
    """The whole answer to a call, when what upstream gave for it is stored."""
    answer = post(proxy, path, body, headers=headers)
    if answer.status_code == 200 and answer.headers["X-Cache"] != "HIT":
        proxy.stats()
    return answer


def sampling(path: str, n: int = 1, tokens: int = 8) -> dict[str, Any]:
    """A call for n samples."""
    body = BODIES[path]
    if path == GENERATE:
        params = {**body["sampling_params"], "n": n, "max_new_tokens": tokens}
        return {**body, "sampling_params": params}
    return {**body, "n": n, "max_tokens": tokens}


def asking(
    path: str, text: Any = "one two", n: int = 1, tokens: int = 8, **more: Any
) -> dict[str, Any]:
    """A call for n samples of one prompt, or of each of a list."""
    content = {GENERATE: {"text": text}, COMPLETIONS: {"prompt": text}}
    chat = {"messages": [{"role": "user", "content": text}]}
    return {**sampling(path, n, tokens), **content.get(path, chat), **more}


def greedy(path: str, text: Any = "one two", n: int = 1, **more: Any) -> dict[str, Any]:
    """A call whose answer is a function of model and prompt."""
    body = asking(path, text, n)
    if path == GENERATE:
        body["sampling_params"]["temperature"] = 0
        return {**body, **more}
    return {**body, "model": "simulated", "temperature": 0, **more}


def sampled(simulator: Simulator) -> list[dict[str, Any]]:
    """The bodies of the sampling requests that upstream has seen."""
    return [json.loads(r.body) for r in simulator.received if r.path in BODIES]


class Stream:
    """A client that sees chunks."""

    def __init__(self, proxy: Proxy, path: str, body: Any) -> None:
        self.socket = proxy.connect(30)
        self.file = self.socket.makefile("rb")
        self.socket.sendall(raw(path, body))
        self.status = 0
        self.headers: dict[str, str] = {}

    def begin(self) -> Stream:
        """Reads the head."""
        self.status = int(self.file.readline().split()[1])
        while (line := self.file.readline().rstrip()) != b"":
            name, _, value = line.decode().partition(": ")
            self.headers[name.lower()] = value
        return self

    def chunks(self) -> Iterator[bytes]:
        """Raises ConnectionError where the stream is cut."""
        while line := self.file.readline():
            size = int(line, 16)
            data = self.file.read(size)
            assert self.file.read(2) in (b"\r\n", b"")
            if not size:
                return
            if len(data) < size:
                break
            yield data
        raise ConnectionError("cut")

    def rest(self) -> list[bytes]:
        return list(self.chunks())

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def raw(path: str, body: Any, version: str = "1.1") -> bytes:
    """A call as it is on the wire."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/{version}\r\nHost: h\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def stream(proxy: Proxy, path: str, body: Any) -> tuple[dict[str, str], list[bytes]]:
    """A streamed answer's head and chunks; each must be one event, as some clients parse chunks."""
    with closing(Stream(proxy, path, {**body, "stream": True})) as client:
        chunks = client.begin().rest()
    assert client.status == 200
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert client.headers["transfer-encoding"] == "chunked"
    assert all(c.startswith(b"data: ") and c.find(b"\n\n") == len(c) - 2 for c in chunks)
    return client.headers, chunks


def events(answer: requests.Response) -> list[bytes]:
    """The events of a streamed answer, with what ends each of them."""
    *found, end = answer.content.split(b"\n\n")
    assert end == b""
    return [event + b"\n\n" for event in found]


def said(chunks: list[bytes]) -> list[Any]:
    """What the events before the terminator say."""
    assert chunks[-1] == DONE
    return [json.loads(chunk[6:]) for chunk in chunks[:-1]]


def texts(path: str, chunks: list[bytes]) -> dict[int, str]:
    """What each choice of a stream says."""
    found: dict[int, str] = {}
    for event in said(chunks):
        if path == GENERATE:
            found[event.get("index", 0)] = event["text"]
        for choice in event.get("choices", ()):
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            found[choice["index"]] = found.get(choice["index"], "") + (text or "")
    return found


def json_texts(path: str, answer: Any) -> dict[int, str]:
    if path == GENERATE:
        natives = answer if isinstance(answer, list) else [answer]
        return {k: native["text"] for k, native in enumerate(natives)}
    return {
        c["index"]: c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]
    }


def heard(path: str, answer: requests.Response) -> dict[int, str]:
    """What each choice of an answer says, in whichever form it came."""
    assert answer.status_code == 200, answer.text
    if "json" in answer.headers["content-type"]:
        return json_texts(path, answer.json())
    return texts(path, events(answer))


def status_of(answer: requests.Response) -> tuple[str, str]:
    return answer.headers["X-Cache"], cache_status(answer.headers)

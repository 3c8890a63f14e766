"""Small servers that speak as recorded ones do: the events and documents are theirs, the texts our
own.

A sample is a function of the seed of its place where a call has one, as with the servers
themselves: the first has the call's seed, the next one that and 1. `tests/servers/record.py` makes
the recordings; what is written from a server's source instead says so in its `what`.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.hearing import Answering, Upstream, serving
from tests.simulator import is_probe

NAMES = ("vllm", "llama_cpp", "tgi", "ollama")
WITHOUT_N = ("tgi", "ollama")
"""Servers to which `n` says nothing: there is one choice."""


_SAME = {"id": "the-id", "created": 1_795_759_200}
"""What differs from one answer to the next, and is not to differ here."""


def recorded(name: str) -> dict[str, Any]:
    """The exchanges with a server."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / f"{name}.json").read_bytes())
    return found


class StandIn(Upstream):
    """A server that speaks as the one of this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.said = recorded(name)
        self.about = {
            path: json.loads(one["response"]["body"])
            for path, one in self.said.items()
            if path.startswith("/") and one["response"]["status"] == 200
        }
        """What it says of itself, by route."""
        self.between: bytes = b""
        """What stands before each event of a stream."""
        self.changes: dict[str, Any] = {}
        """Members of the last event of each choice, or of each choice in JSON, that it has
        otherwise."""
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self._drawn = itertools.count(1)
        super().__init__(_Handler)

    def texts(self, body: dict[str, Any]) -> list[str]:
        """What the choices of an answer say."""
        n = 1 if self.name in WITHOUT_N else body.get("n", 1)
        prompts = body.get("prompt", "")
        count = n * (len(prompts) if isinstance(prompts, list) else 1)
        seed = body.get("seed")
        return [f"seed {seed + k % n}!" if seed is not None else f"draw {next(self._drawn)}!"
                for k in range(count)]  # fmt: skip

    def document(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """A JSON answer."""
        name = f"{kind}-n2-ids" if body.get("return_token_ids") and self.name == "vllm" else kind
        answer: dict[str, Any] = json.loads(self.said[name]["response"]["body"])
        like, texts = answer["choices"][0], self.texts(body)
        answer["choices"] = []
        for index, text in enumerate(texts):
            choice = copy.deepcopy(like)
            (choice["message"] if kind == "chat" else choice).update(
                {"content" if kind == "chat" else "text": text}
            )
            answer["choices"].append({**choice, "index": index, **self.changes})
        if self.name != "llama_cpp":  # it tells what the first choice came to
            _count(answer["usage"], len(texts), 2 if name.endswith("ids") else 1)
        return {**answer, **_SAME}

    def events(self, kind: str, body: dict[str, Any]) -> list[Any]:
        """The events of a stream."""
        options = body.get("stream_options") or {}
        name = f"{kind}-stream" + "-usage" * bool(options.get("include_usage"))
        is_counted = options.get("continuous_usage_stats") and self.name == "vllm"
        if is_counted:
            name = f"{kind}-stream-n2-continuous"
        like = [json.loads(line[6:]) for line in self.said[name]["response"]["body"].split("\n\n")
                if line.startswith("data: {")]  # fmt: skip
        mine = [event for event in like if event["choices"] and event["choices"][0]["index"] == 0]
        ends = [event for event in like if not event["choices"]]
        texts = self.texts(body)
        each = [_spoken(mine, index, text, self.changes) for index, text in enumerate(texts)]
        for event in ends if self.name != "llama_cpp" else ():
            _count(event["usage"], len(texts), 2 if is_counted else 1)
        rounds = itertools.zip_longest(*each)
        whole = [*(event for events in rounds for event in events if event), *ends]
        return [{**event, **_SAME} for event in whole]


def _count(usage: dict[str, Any], texts: int, recorded: int) -> None:
    """Makes a usage that of so many choices, where it was that of `recorded` ones."""
    usage["completion_tokens"] = usage["completion_tokens"] // recorded * texts
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]


def _spoken(
    like: list[dict[str, Any]], index: int, text: str, changes: dict[str, Any]
) -> list[dict[str, Any]]:
    """The events of one choice that has this text."""
    events = copy.deepcopy(like)
    spoken = [event["choices"][0] for event in events if _text(event["choices"][0])]
    size = -(-len(text) // len(spoken))
    for k, choice in enumerate(spoken):
        holder = choice.get("delta", choice)
        name = "content" if "delta" in choice else "text"
        holder[name] = text[k * size : (k + 1) * size]
    for event in events:
        event["choices"][0]["index"] = index
    events[-1]["choices"][0].update(changes)
    return events


def _text(choice: dict[str, Any]) -> Any:
    return choice["delta"].get("content") if "delta" in choice else choice["text"]


class _Handler(Answering):
    server: StandIn

    def do_GET(self) -> None:
        if self.path in self.server.about:
            self.reply(200, self.server.about[self.path])
        else:
            self.reply(404, {"error": "there is no such route"})

    def do_POST(self) -> None:
        data = self.body()
        kind = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}.get(self.path)
        if kind is None:
            self.reply(404, {"error": "there is no such route"})
            return
        body = json.loads(data)
        with self.server.lock:
            if not is_probe(data):
                self.server.bodies.append(body)
            if not body.get("stream"):
                self.reply(200, self.server.document(kind, body))
                return
            events = self.server.events(kind, body)
        said = [*(json.dumps(event, separators=(",", ":")) for event in events), "[DONE]"]
        pieces = [self.server.between + f"data: {one}\n\n".encode() for one in said]
        self.reply(200, b"".join(pieces), "text/event-stream")


@contextmanager
def standing_in(name: str) -> Iterator[StandIn]:
    """Such a server in a thread of its own."""
    with serving(StandIn(name)) as server:
        yield server

"""A client, the exchange, and an upstream that answers `/generate` as SGLang does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf
from typing import Any

import orjson

from sglang_cached_addon.core import keys, planning
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.ignoring import Ignoring
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.core.policy import PLAIN, Reason, Terms
from sglang_cached_addon.dialects import chat, completions, generate, registry
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import Bypass, Fetch, Hit, Known
from sglang_cached_addon.service.relay import Relay
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.wire import sse
from tests.dialects.streams import worded

GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"


JSON = {b"content-type": b"application/json"}


def store(exchange: Exchange, fetch: Fetch, samples: Iterable[tuple[int, Sample]]) -> Reason | None:
    """Why what a fetch has brought is not stored, or not all of it."""
    return next((reason for _, reason in exchange.store(fetch, samples) if reason), None)


@dataclass(frozen=True)
class Done:
    """The end of a fetch, as its client sees it."""

    status: int
    body: bytes | None
    """None: upstream's own bytes."""
    reason: Reason | None
    generated: int = 0


class Setup:
    """A client, the exchange, and an upstream that answers `/generate` as SGLang does."""

    def __init__(
        self,
        store: MemoryStore | None = None,
        fingerprint: str = "",
        ignoring: Ignoring | None = None,
    ) -> None:
        numbers = itertools.count(1)
        self.store = MemoryStore() if store is None else store
        self.exchange = Exchange(
            registry([generate.DIALECT, completions.DIALECT, chat.DIALECT]),
            self.store,
            lambda: f"{next(numbers):032x}",
            ignoring,
        )
        if fingerprint:
            self.exchange.lookup.enter(fingerprint, Epochs(), UNKNOWN, 0)
        self.received: list[dict[str, Any]] = []
        self.generated = 0
        self.model_version = 0

    def enter(
        self, fingerprint: str, epochs: Epochs | None = None, weights: str | None = None
    ) -> None:
        """Another model."""
        self.model_version += 1
        server = Server(SGLANG, weights)
        self.exchange.lookup.enter(fingerprint, epochs or Epochs(), server, self.model_version)

    def find(
        self,
        body: Any,
        path: str = GENERATE,
        method: str = "POST",
        terms: Terms = PLAIN,
        tenant: bytes = b"",
    ) -> Hit | Known | Bypass:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        found = self.exchange.lookup.find(method, path, raw, terms, tenant)
        return self.exchange.bypass(found) if isinstance(found, Reason) else found

    def know(self, body: Any, path: str = GENERATE, **kwargs: Any) -> Known:
        found = self.find(body, path, **kwargs)
        assert isinstance(found, Known)
        return found

    def receive(
        self, body: Any, path: str = GENERATE, *, terms: Terms = PLAIN, **kwargs: Any
    ) -> Hit | Fetch | Bypass:
        found = self.find(body, path, terms=terms, **kwargs)
        if not isinstance(found, Known):
            return found
        return self.exchange.fetch(found, self.exchange.lookup.plan(found, terms), terms)

    def fetch(self, body: Any, path: str = GENERATE, **kwargs: Any) -> Fetch:
        decision = self.receive(body, path, **kwargs)
        assert isinstance(decision, Fetch)
        return decision

    def complete(self, fetch: Fetch, answer: Any, status: int = 200, now: float = 100.0) -> Done:
        raw = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        landed = self.exchange.land(fetch, status, BytesIO(raw))
        body = None if landed.body == raw else landed.body
        if landed.split is None:
            return Done(landed.status, body, landed.refusal)
        new = planning.samples(landed.split.generations, now, 2.0, fetch.known.origins)
        reason = landed.refusal or store(self.exchange, fetch, new)
        if not fetch.is_whole:
            assert landed.body == b""
            body = self.exchange.lookup.answer(fetch.known, fetch.plan.with_samples(new))
        return Done(landed.status, body, reason, len(new))

    def generate(self, body: dict[str, Any]) -> bytes:
        """Upstream's answer; texts tell prompts, and never come twice."""
        self.received.append(body)
        n = body.get("sampling_params", {}).get("n", 1)
        batched = isinstance(body["text"], list)
        prompts = body["text"] if batched else [body["text"]]
        rids = body.get("rid") if n == 1 else None
        answers = []
        for i, prompt in enumerate(prompts):
            for _ in range(n):
                self.generated += 1
                rid = rids[i] if isinstance(rids, list) else rids
                meta = {
                    "id": rid or f"own{self.generated}",
                    "finish_reason": {"type": "stop"},
                    "completion_tokens": 3,
                }
                answers.append({"text": f"{prompt}{self.generated}", "meta_info": meta})
        return orjson.dumps(answers if batched or n > 1 else answers[0])

    def ask(self, body: dict[str, Any], *, now: float = 100.0, **kwargs: Any) -> tuple[Kind, Any]:
        """Sends a request all the way."""
        decision = self.receive(body, **kwargs)
        if isinstance(decision, Hit):
            return decision.outcome.kind, json.loads(decision.body)
        assert isinstance(decision, Fetch)
        sent = body if decision.body is None else json.loads(decision.body)
        raw = self.generate(sent)
        done = self.complete(decision, raw, now=now)
        assert done.status == 200
        kind = Kind.PARTIAL if decision.plan.have else Kind.MISS
        return kind, json.loads(raw if done.body is None else done.body)

    def texts(self, body: dict[str, Any], **kwargs: Any) -> tuple[Kind, str]:
        kind, answer = self.ask(body, **kwargs)
        answers = answer if isinstance(answer, list) else [answer]
        return kind, " ".join(native["text"] for native in answers)

    @property
    def counts(self) -> dict[str, Any]:
        return self.exchange.counters.as_json()


def body(text: Any = "a", n: int | None = None, **fields: Any) -> dict[str, Any]:
    params = {"temperature": 1} if n is None else {"temperature": 1, "n": n}
    return {"text": text, "sampling_params": params, **fields}


def native(text: str, finish: Any = "stop", **meta: Any) -> dict[str, Any]:
    reason = {"type": finish} if finish else None
    return {"text": text, "meta_info": {"id": "up", "finish_reason": reason, **meta}}


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


ODD = [None, True, 1, 1.5, "x", [], {}, [1], ["x"], [[1]], [None], [{}], {"a": 1}, [{"n": 2}], -1]


FIELDS = [
    "text", "input_ids", "input_embeds", "sampling_params", "rid", "stream", "n", "prompt",
    "messages", "lora_path", "image_data", "token_ids_logprob", "return_logprob", "stop",
    "return_routed_experts", "session_params", "priority", "temperature", "usage",
]  # fmt: skip


def seconds(since: float) -> Terms:
    """As `max-age` says it."""
    return Terms(since)


REFRESH = Terms(inf)


ANN, BOB = b"a" * 32, b"b" * 32


def versions(*names: str | None) -> list[dict[str, Any]]:
    return [native("x", **({"weight_version": name} if name else {})) for name in names]


CHATTING = {"messages": [{"role": "user", "content": "a"}]}


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "a": (GENERATE, body(lora_path="a")),
    "a, twice": (GENERATE, body(["x", "y"], lora_path="a")),
    "base:a": (CHAT, {**CHATTING, "model": "base:a"}),
    "a as a model": (COMPLETIONS, {"prompt": "p", "model": "a"}),
    "b": (GENERATE, body(lora_path="b")),
    "base:b": (CHAT, {**CHATTING, "model": "base:b"}),
    "none": (GENERATE, body()),
    "base": (CHAT, {**CHATTING, "model": "base"}),
    "as a prompt": (GENERATE, body("a")),
}


def key_of(prompt: str, fingerprint: str = "") -> bytes:
    (item,) = generate.DIALECT.read(body(prompt)).items
    return keys.Digester(fingerprint, generate.DIALECT.name).key(item)


def finishes(answer: Any) -> list[Any]:
    """How each sample of an answer ended."""
    if isinstance(answer, dict) and "choices" in answer:
        return [choice["finish_reason"] for choice in answer["choices"]]
    natives = answer if isinstance(answer, list) else [answer]
    return [native["meta_info"]["finish_reason"]["type"] for native in natives]


def streamed(setup: Setup, fetch: Fetch, events: Sequence[Any]) -> tuple[Reason | None, int]:
    """Sends a stream all the way to the store: why it is not there, and how many samples it had."""
    relay = Relay(fetch.known.dialect, fetch.plan, fetch.sent)
    relay.feed(b"".join(worded(event) for event in events) + sse.DONE)
    landed = setup.exchange.land_stream(fetch, relay)
    assert (landed.status, landed.body) == (200, b"")
    if landed.split is None or landed.refusal:
        return landed.refusal, 0
    new = planning.samples(landed.split.generations, 100.0, 2.0)
    return store(setup.exchange, fetch, new), len(new)

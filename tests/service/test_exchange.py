"""Whole ways of requests through the cache."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import inf
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core import keys, planning, policy
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import SGLANG, Server
from sglang_cached_addon.core.outcome import Kind, Saved
from sglang_cached_addon.core.policy import PLAIN, Reason, Terms
from sglang_cached_addon.dialects import chat, completions, generate, registry
from sglang_cached_addon.service import slices
from sglang_cached_addon.service.exchange import (
    TENANTS,
    Bypass,
    Exchange,
    Fetch,
    Hit,
    Known,
    Landed,
    error_body,
)
from sglang_cached_addon.store.memory import Memory
from sglang_cached_addon.wire import sse
from tests.dialects import test_chat_stream as chats
from tests.dialects import test_generate_stream as natives
from tests.dialects.streams import parsed, worded

JSON = {b"content-type": b"application/json"}
GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True)
class Done:
    """The end of a fetch, as its client sees it."""

    status: int
    body: bytes | None
    """None: upstream's own bytes."""
    reason: Reason | None
    generated: int = 0


class Way:
    """A client, the exchange, and an upstream that answers `/generate` as SGLang does."""

    def __init__(self, store: Memory | None = None, fingerprint: str = "") -> None:
        numbers = itertools.count(1)
        self.store = Memory() if store is None else store
        self.exchange = Exchange(
            registry([generate.DIALECT, completions.DIALECT, chat.DIALECT]),
            self.store,
            lambda: f"{next(numbers):032x}",
            fingerprint,
        )
        self.received: list[dict[str, Any]] = []
        self.generated = 0
        self.model_version = 0

    def enter(
        self, fingerprint: str, epochs: Epochs | None = None, weights: str | None = None
    ) -> None:
        """Another model."""
        self.model_version += 1
        server = Server(SGLANG, weights)
        self.exchange.enter(fingerprint, epochs or Epochs(), server, self.model_version)

    def find(
        self,
        body: Any,
        path: str = GENERATE,
        now: float = 100.0,
        method: str = "POST",
        terms: Terms = PLAIN,
        tenant: bytes = b"",
    ) -> Hit | Known | Bypass:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        found = self.exchange.find(method, path, raw, now, terms, tenant)
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
        return self.exchange.fetch(found, self.exchange.plan(found, terms), terms)

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
        new = planning.samples(landed.split.generations, now, 2.0)
        reason = landed.refusal or self.exchange.commit(fetch, new)
        if not fetch.is_whole:
            assert landed.body == b""
            body = self.exchange.answer(fetch.known, fetch.plan.with_samples(new))
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
        decision = self.receive(body, now=now, **kwargs)
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


def test_hit_after_miss() -> None:
    """The same request would be generated twice."""
    way = Way()
    assert way.texts(body()) == (Kind.MISS, "a1")
    assert way.texts(body()) == (Kind.HIT, "a1")
    assert way.received == [body()]


def test_hit_is_not_counted_when_it_is_found() -> None:
    """A hit that waits for upstream's word on who may see it would count before it is given."""
    way = Way()
    way.ask(body())
    hit = way.find(body())
    assert isinstance(hit, Hit)
    assert hit.saved == Saved(1, 3, 2.0)
    assert not any(value for value in way.counts.values())


def test_miss_is_untouched() -> None:
    """Upstream or client would see other bytes than without the proxy."""
    way = Way()
    fetch = way.fetch(b' {"text" : "a", "odd":1.0e0 }')
    assert fetch.body is None
    raw = b'{ "text":"x", "meta_info": {"finish_reason": {"type":"stop"}} }'
    done = way.complete(fetch, raw)
    assert done == Done(200, None, None, 1)


def test_one_then_three_then_two() -> None:
    """Growing `n` would generate again what is stored, or shrinking it give other samples."""
    way = Way()
    assert way.texts(body(n=1)) == (Kind.MISS, "a1")
    assert way.texts(body(n=3)) == (Kind.PARTIAL, "a1 a2 a3")
    assert way.texts(body(n=2)) == (Kind.HIT, "a1 a2")
    assert way.texts(body()) == (Kind.HIT, "a1")
    assert way.texts(body(n=4)) == (Kind.PARTIAL, "a1 a2 a3 a4")
    assert [sent["sampling_params"]["n"] for sent in way.received] == [1, 2, 1]


def test_forms_share_samples() -> None:
    """A list of one prompt would pay again for what a single prompt has."""
    way = Way()
    assert way.ask(body())[0] is Kind.MISS
    kind, answer = way.ask(body(["a"]))
    assert (kind, [a["text"] for a in answer]) == (Kind.HIT, ["a1"])
    assert isinstance(way.receive(body(), method="PUT"), Hit)


def test_batch_with_a_known_prompt() -> None:
    """The known prompt of a batch would be generated again, or answered in another place."""
    way = Way()
    way.ask(body("b"))
    assert way.texts(body(["a", "b", "c"])) == (Kind.PARTIAL, "a2 b1 c3")
    assert way.received[-1]["text"] == ["a", "c"]
    assert way.texts(body(["c", "a"])) == (Kind.HIT, "c3 a2")


def test_batch_with_uneven_pools() -> None:
    """Prompts with different shortfalls would get too few samples, or each other's."""
    way = Way()
    way.ask(body("a", 2))
    way.ask(body("b", 1))
    assert way.texts(body(["a", "b", "c"], 3)) == (
        Kind.PARTIAL,
        "a1 a2 a4 b3 b5 b6 c7 c8 c9",
    )
    assert way.received[-1]["text"] == ["a", "b", "b", "c", "c", "c"]
    assert way.texts(body(["c", "b"], 3)) == (Kind.HIT, "c7 c8 c9 b3 b5 b6")


def test_prompt_that_comes_twice() -> None:
    """Two equal prompts of a batch would get one sample twice."""
    way = Way()
    way.ask(body())
    assert way.texts(body(["a", "a"])) == (Kind.PARTIAL, "a1 a2")
    assert way.texts(body(["a", "a"])) == (Kind.HIT, "a1 a2")
    assert way.texts(body("a", 2)) == (Kind.HIT, "a1 a2")


def test_equal_requests_in_flight() -> None:
    """Samples of two equal requests at the same time would be lost or mixed up."""
    way = Way()
    first, second = way.fetch(body()), way.fetch(body())
    way.complete(second, native("second"))
    way.complete(first, native("first"))
    assert way.texts(body(n=2)) == (Kind.HIT, "second first")


def test_clear_between_equal_requests() -> None:
    """A cleared cache would go on answering what was asked before."""
    way = Way()
    way.ask(body())
    assert way.texts(body()) == (Kind.HIT, "a1")
    way.store.clear()
    assert way.texts(body()) == (Kind.MISS, "a2")
    assert way.texts(body()) == (Kind.HIT, "a2")


def test_growing_pool_between_equal_requests() -> None:
    """A repeated request would get other samples, only because another one wanted more."""
    way = Way()
    assert way.texts(body(["a", "a"])) == (Kind.MISS, "a1 a2")
    assert way.texts(body(["a", "a"])) == (Kind.HIT, "a1 a2")
    assert way.texts(body("a", 4)) == (Kind.PARTIAL, "a1 a2 a3 a4")
    assert way.texts(body(["a", "a"])) == (Kind.HIT, "a1 a2")


def test_large_answers_are_hits_every_time() -> None:
    """An answer that is too large to be kept ready would be wrong or lost the second time."""
    way = Way()
    texts = [str(k) * (12 << 20) for k in range(6)]
    request = body(n=6)
    way.complete(way.fetch(request), [native(text) for text in texts])
    for _ in range(2):
        hit = way.receive(request)
        assert isinstance(hit, Hit)
        assert [a["text"] for a in orjson.loads(hit.body)] == texts
    way.store.clear()
    assert isinstance(way.receive(request), Fetch)


def test_counts_nothing() -> None:
    """What is found is not counted yet: who asks is looked at afterwards."""
    way = Way()
    way.ask(body())
    way.ask(body("a", 2))
    hit = way.exchange.find("POST", GENERATE, json.dumps(body()).encode(), 105.0)
    assert isinstance(hit, Hit)
    assert (hit.outcome.kind, hit.outcome.age) == (Kind.HIT, 5)
    short = json.dumps(body(n=3)).encode()
    assert isinstance(way.exchange.find("POST", GENERATE, short, 100.0), Known)
    assert way.exchange.find("POST", GENERATE, b"{", 100.0) is Reason.INVALID_JSON
    counts = way.counts
    assert (counts["hits"], counts["misses"], counts["partial_hits"]) == (0, 0, 0)
    assert counts["bypasses"] == {}


def test_refusal_of_equal_requests() -> None:
    """A request that is refused again would not be counted, or be for another reason."""
    way = Way()
    for _ in range(3):
        decision = way.receive(b'{"text":"a","stream":1}')
        assert isinstance(decision, Bypass)
        assert decision.outcome.reason is Reason.MALFORMED
    assert way.counts["bypasses"] == {"malformed": 3}


class ByMethod(type(generate.DIALECT)):
    """A third party's dialect that answers for one method alone."""

    def __init__(self, method: str) -> None:
        self.name = f"by-{method.lower()}"
        self.routes = ((method, "/x"),)


def test_methods_of_one_path() -> None:
    """One API's answer would be given to another's client where they share a path."""
    way = Way()
    way.exchange.dialects = registry([ByMethod("POST"), ByMethod("PUT")])
    way.complete(way.fetch(body(), "/x"), native("x"))
    assert isinstance(way.receive(body(), "/x"), Hit)
    assert isinstance(way.receive(body(), "/x", method="PUT"), Fetch)


@pytest.mark.parametrize(
    "other",
    [
        body("b"),
        body("a", seed=1),
        {"text": "a"},
        {"text": "a", "sampling_params": {"temperature": 0.5}},
        {"input_ids": [1], "sampling_params": {"temperature": 1}},
    ],
)
def test_other_requests(other: dict[str, Any]) -> None:
    """A request would get the answer to another."""
    way = Way()
    way.ask(body())
    assert isinstance(way.receive(other), Fetch)


def test_other_dialects() -> None:
    """One API's answer would be given to another's client."""
    way = Way()
    both = {"text": "a", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    way.complete(way.fetch(both), native("x"))
    assert isinstance(way.receive(both), Hit)
    assert isinstance(way.receive(both, COMPLETIONS), Fetch)
    assert isinstance(way.receive(both, CHAT), Fetch)


def test_other_model() -> None:
    """One model's answer would be given as another's."""
    store = Memory()
    Way(store, "m1").ask(body())
    assert isinstance(Way(store, "m2").receive(body()), Fetch)
    assert isinstance(Way(store, "m1").receive(body()), Hit)


@pytest.mark.parametrize(
    ("stored", "now", "age"),
    [(100.0, 100.0, 0), (100.0, 100.9, 0), (100.0, 161.0, 61), (100.0, 50.0, 0)],
)
def test_age(stored: float, now: float, age: int) -> None:
    """`Age` would be negative after the clock was set back, or younger than the oldest sample."""
    way = Way()
    fetch = way.fetch(body())
    way.complete(fetch, native("x"), now=stored)
    hit = way.receive(body(), now=now)
    assert isinstance(hit, Hit)
    assert hit.outcome.age == age


def test_age_of_equal_requests() -> None:
    """An answer would stay as young as it was when it was asked for first."""
    way = Way()
    way.ask(body())
    for now in (100.0, 130.0, 190.0, 110.0):
        hit = way.receive(body(), now=now)
        assert isinstance(hit, Hit)
        assert hit.outcome.age == now - 100.0


def test_age_of_the_oldest() -> None:
    """An answer would claim to be as fresh as its newest sample."""
    way = Way()
    for now in (300.0, 100.0):
        fetch = way.fetch(body(n=2 if now == 100.0 else 1))
        way.complete(fetch, native("x"), now=now)
    hit = way.receive(body(n=2), now=400.0)
    assert isinstance(hit, Hit)
    assert hit.outcome.age == 300


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", Reason.INVALID_JSON),
        (b"[]", Reason.MALFORMED),
        (b'{"text":"a","text":"b"}', Reason.DUPLICATE_KEY),
        (b'{"text":"a","stream":true,"return_hidden_states":true}', Reason.STREAM),
        (b'{"text":"a","session_params":{}}', Reason.STATE),
        (b'{"text":"a","image_data":"a.png"}', Reason.MEDIA),
        (b'{"text":"a","x":18446744073709551616}', Reason.INVALID_JSON),
    ],
)
def test_bypass(raw: bytes, reason: Reason) -> None:
    """What is not understood would be answered from the cache, or not be told and counted."""
    way = Way()
    way.ask({"text": "a"})
    decision = way.find(raw)
    assert isinstance(decision, Bypass)
    assert (decision.outcome.kind, decision.outcome.reason) == (Kind.BYPASS, reason)
    assert way.counts["bypasses"] == {str(reason): 1}
    assert (way.counts["hits"], way.counts["misses"]) == (0, 0)


def test_bypass_by_the_caller() -> None:
    """A reason that is found before the body is read would not be counted."""
    way = Way()
    assert way.exchange.bypass(Reason.QUERY).outcome.reason is Reason.QUERY
    assert way.counts["bypasses"] == {"query": 1}


@pytest.mark.parametrize("status", [201, 204, 400, 401, 404, 500, 503])
@pytest.mark.parametrize("partial", [False, True])
def test_other_statuses(status: int, partial: bool) -> None:
    """An error would be repeated for ever, or be changed on its way."""
    way = Way()
    if partial:
        way.ask(body())
    done = way.complete(way.fetch(body(n=2)), [native("x"), native("y")], status)
    assert done == Done(status, None, Reason.STATUS)
    assert way.store.samples == partial


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (native("x", "abort"), Reason.ABORT),
        (native("x", None), Reason.UNFINISHED),
        (native("x", weight_versions=[{}, {}]), Reason.MIXED_WEIGHTS),
    ],
)
def test_answer_that_is_not_stored(bad: dict[str, Any], reason: Reason) -> None:
    """A cut answer would be repeated for ever, or the client not even see it."""
    way = Way()
    done = way.complete(way.fetch(body()), bad)
    assert done == Done(200, None, reason, 1)
    way.complete(way.fetch(body()), native("good"))
    done = way.complete(way.fetch(body(n=3)), [native("new"), bad])
    assert (done.status, done.reason) == (200, reason)
    assert [a["text"] for a in json.loads(done.body or b"")] == ["good", "new", "x"]
    assert way.store.samples == 1


UNREADABLE = [
    (b"", Reason.UNREADABLE),
    (b"<html>", Reason.UNREADABLE),
    (b'{"text":', Reason.UNREADABLE),
    (b"{}", Reason.UNREADABLE),
    (b"[]", Reason.UNREADABLE),
    (b"null", Reason.UNREADABLE),
    (b'[{"text":"x","meta_info":{}}]', Reason.UNREADABLE),
    (b'{"error":{"message":"x"}}', Reason.ERROR),
]


@pytest.mark.parametrize(("raw", "reason"), UNREADABLE)
def test_unreadable_answer_to_the_clients_own_request(raw: bytes, reason: Reason) -> None:
    """A client would not get what upstream says, because the proxy cannot read it."""
    way = Way()
    done = way.complete(way.fetch(body()), raw)
    assert done == Done(200, None, reason)
    assert way.store.samples == 0


@pytest.mark.parametrize(("raw", "reason"), UNREADABLE)
def test_unreadable_answer_to_a_trimmed_request(raw: bytes, reason: Reason) -> None:
    """What is a part of an answer would be taken for samples."""
    way = Way()
    way.ask(body())
    done = way.complete(way.fetch(body(n=2)), raw)
    assert (done.status, done.reason, done.generated) == (200, reason, 0)
    assert way.store.samples == 1


@pytest.mark.parametrize("rid", ["r", "", "ü🚀", '"\\/\n', "x" * 300])
def test_client_rid_in_a_miss(rid: str) -> None:
    """A client would find our id in its answer, or other bytes than upstream's."""
    way = Way()
    fetch = way.fetch(body(rid=rid))
    sent = json.loads(fetch.body or b"")
    assert sent["rid"] != rid
    assert {**sent, "rid": rid} == body(rid=rid)
    raw = b'{ "text":"x" ,"n":1.0e0,\n "meta_info": {"id":"%s", "finish_reason":{"type":"stop"}}}'
    done = way.complete(fetch, raw % sent["rid"].encode())
    assert done.body == raw % orjson.dumps(rid)[1:-1]
    assert json.loads(done.body)["meta_info"]["id"] == rid


def test_client_rid_in_an_unreadable_miss() -> None:
    """A client would find our id in what it has to read itself."""
    way = Way()
    fetch = way.fetch(body(rid="r"))
    sent = json.loads(fetch.body or b"")["rid"].encode()
    assert way.complete(fetch, b"<" + sent + b">").body == b"<r>"


def test_client_rids() -> None:
    """A client would find another one's id in its answer."""
    way = Way()
    assert way.ask(body(rid="one"))[1]["meta_info"]["id"] == "one"
    assert way.ask(body(rid="two"))[1]["meta_info"]["id"] == "two"
    assert way.ask(body())[1]["meta_info"]["id"] not in ("one", "two")
    kind, answer = way.ask(body(["b", "a", "c"], rid="x"))
    assert kind is Kind.PARTIAL
    assert [a["meta_info"]["id"] for a in answer] == ["x_0", "x_1", "x_2"]
    kind, answer = way.ask(body(["a", "c"], rid=["p", "q"]))
    assert kind is Kind.HIT
    assert [(a["text"][0], a["meta_info"]["id"]) for a in answer] == [("a", "p"), ("c", "q")]
    kind, answer = way.ask(body("a", 2, rid="y"))
    assert kind is Kind.PARTIAL
    assert "y" not in {a["meta_info"]["id"] for a in answer}


def test_trimmed_body_keeps_what_is_unknown() -> None:
    """A field that the proxy does not know would be lost on the way."""
    way = Way()
    extra = {"bogus": {"b": 1, "a": [1.0, None, "ü"]}, "user": "u", "priority": 3}
    way.ask(body(**extra))
    fetch = way.fetch(body(n=3, **extra))
    assert json.loads(fetch.body or b"") == body(n=2, **extra)
    assert (fetch.body or b"").index(b'"b":1') < (fetch.body or b"").index(b'"a":[1.0')


CHOICE = {"index": 0, "text": "x", "finish_reason": "stop"}
USAGE = {"prompt_tokens": 4, "total_tokens": 6, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("path", "request_body"),
    [
        (COMPLETIONS, {"model": "m", "prompt": "a"}),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_openai_way(path: str, request_body: dict[str, Any]) -> None:
    """OpenAI's clients would get wrong counts or indexes from a merged answer."""
    way = Way()
    one = {"id": "1", "created": 1, "choices": [CHOICE], "usage": USAGE}
    two = {"id": "2", "created": 2, "choices": [{**CHOICE, "text": "y"}], "usage": USAGE}
    assert way.complete(way.fetch(request_body, path), one).body is None
    fetch = way.fetch({**request_body, "n": 2}, path)
    assert json.loads(fetch.body or b"") == {**request_body, "n": 1}
    merged = json.loads(way.complete(fetch, two).body or b"")
    assert merged == {
        "id": "1",
        "created": 1,
        "choices": [CHOICE, {"index": 1, "text": "y", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "total_tokens": 8, "completion_tokens": 4},
    }
    hit = way.receive({**request_body, "n": 2}, path)
    assert isinstance(hit, Hit)
    assert json.loads(hit.body) == merged
    hit = way.receive(request_body, path)
    assert isinstance(hit, Hit)
    assert json.loads(hit.body) == one


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    ("field", "value"),
    [("priority", b"1" + b"0" * 30), ("custom_labels", nested(300))],
    ids=["integer", "nesting"],
)
def test_transport_that_cannot_be_written(field: str, value: bytes) -> None:
    """A request that has to be written anew would end in a traceback."""
    raw = b'{"text":"a","rid":"r","%s":%s}' % (field.encode(), value)
    assert isinstance(Way().receive(raw), Bypass)


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        (GENERATE, b'{"text":"a","image_data":%s}' % (b"[" * 900 + b"]" * 900)),
        (
            CHAT,
            b'{"messages":[{"content":[{"image_url":%s}]}]}' % (b"[" * 900 + b"]" * 900),
        ),
    ],
    ids=["generate", "chat"],
)
def test_deeply_nested_media(path: str, raw: bytes) -> None:
    """A hostile body would end in a traceback instead of being passed on."""
    assert isinstance(Way().receive(raw, path), Bypass)


ODD = [None, True, 1, 1.5, "x", [], {}, [1], ["x"], [[1]], [None], [{}], {"a": 1}, [{"n": 2}], -1]
FIELDS = [
    "text", "input_ids", "input_embeds", "sampling_params", "rid", "stream", "n", "prompt",
    "messages", "lora_path", "image_data", "token_ids_logprob", "return_logprob", "stop",
    "return_routed_experts", "session_params", "priority", "temperature", "usage",
]  # fmt: skip


@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS, CHAT])
@pytest.mark.parametrize("field", FIELDS)
def test_odd_values(path: str, field: str) -> None:
    """A mistake in a request would end in a traceback instead of upstream's explanation."""
    way = Way()
    for text, value in itertools.product(("a", ["a", "b"]), ODD):
        whole = {"text": text, "prompt": text, "messages": [{"content": "a"}], field: value}
        decision = way.receive(whole, path)
        assert isinstance(decision, Fetch | Bypass)


@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS, CHAT])
@pytest.mark.parametrize("n", [1, 2])
def test_odd_answers(path: str, n: int) -> None:
    """An odd upstream would end a request in a traceback."""
    way = Way()
    whole = body(n=n, prompt="a", messages=[{"content": "a"}])
    if path != GENERATE:
        whole["n"] = n
    shapes: list[Any] = [*ODD, [{}] * n, [None] * n, [{"meta_info": {}}] * n]
    for value in ODD:
        shapes += [
            {"choices": value},
            {"meta_info": value},
            [{"meta_info": value}] * n,
            [{"meta_info": {"finish_reason": value, "weight_versions": value}}] * n,
        ]
        for name in ("message", "text", "meta_info", "finish_reason", "logprobs", "token_ids"):
            choices = [{"index": k, "finish_reason": "stop", name: value} for k in range(n)]
            shapes.append({"choices": choices, "usage": USAGE})
        choices = [{"index": k, "finish_reason": "stop"} for k in range(n)]
        for name in ("usage", "sglext", "metadata", "id", "created"):
            shapes.append({"choices": choices, name: value})
        for name in ("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens"):
            shapes.append({"choices": choices, "usage": {**USAGE, name: value}})
    for k, shape in enumerate(shapes):
        fresh = {**whole, "salt": k}
        done = way.complete(way.fetch(fresh, path), shape)
        assert (done.body, done.status) == (None, 200)
        decision = way.receive(fresh, path)
        assert isinstance(decision, Fetch if done.reason else Hit)


def test_error_body() -> None:
    """OpenAI's clients would show a parse error instead of what went wrong."""
    assert json.loads(error_body(502, "BadGateway", "no")) == {
        "error": {"message": "no", "type": "BadGateway", "code": 502}
    }


def test_clear_during_a_fetch() -> None:
    """Who clears after a change of weights would find an answer of the old ones again."""
    way = Way()
    fetch = way.fetch(body())
    way.store.clear()
    assert way.complete(fetch, native("a1")) == Done(200, None, Reason.CLEARED, 1)
    assert isinstance(way.receive(body()), Fetch)


def test_the_very_bytes_of_a_plain_call() -> None:
    """Bytes that came before would be read again after a restart, or answer another call."""
    store = Memory()
    Way(store).ask(body())
    raw = json.dumps(body()).encode()
    again = Way(store)
    hit = again.find(raw, now=107.0)
    assert isinstance(hit, Hit)
    assert json.loads(hit.body)["text"] == "a1"
    assert (hit.outcome.age, hit.saved.tokens) == (7, 3)
    # The same bytes mean something else to another API, and to another model.
    assert not isinstance(again.find(raw, CHAT), Hit)
    assert not isinstance(Way(store, "other").find(raw), Hit)
    store.clear()
    assert not isinstance(again.find(raw), Hit)


@pytest.mark.parametrize(
    "asked", [body(n=2), body(["a"]), body(rid="r"), body(n=2, rid="r")], ids=str
)
def test_only_a_plain_call_has_a_name(asked: dict[str, Any]) -> None:
    """A call for more than one sample, for an array or with a rid would get a lone answer."""
    store = Memory()
    first = Way(store).ask(asked)[1]
    kind, second = Way(store).ask(asked)
    assert kind is Kind.HIT
    assert second == first


# Terms


def seconds(since: float) -> Terms:
    """As `max-age` says it."""
    return Terms(since)


REFRESH = Terms(inf)
"""As `no-cache` says it."""


def test_too_old_samples_do_not_count() -> None:
    """Who wants a fresh answer would get the stored one, or leave both in the store."""
    way = Way()
    way.ask(body(), now=100.0)
    assert isinstance(way.find(body()), Hit)  # from memory from now on
    assert way.texts(body(), now=200.0, terms=seconds(150.0)) == (Kind.MISS, "a2")
    assert (way.store.samples, way.store.by_dialect) == (1, {"sglang-generate": 1})
    for terms in (PLAIN, seconds(150.0), seconds(200.0)):
        assert way.texts(body(), now=300.0, terms=terms) == (Kind.HIT, "a2")
    hit = way.receive(body(), now=300.0)
    assert isinstance(hit, Hit)
    assert hit.outcome.age == 100


def test_too_old_samples_by_name() -> None:
    """The short cut for bytes that came before would give a too old answer after a restart."""
    store = Memory()
    Way(store).ask(body(), now=100.0)
    assert isinstance(Way(store).find(body(), terms=seconds(101.0)), Known)
    assert isinstance(Way(store).find(body(), terms=seconds(100.0)), Hit)
    assert isinstance(Way(store).find(body()), Hit)


@pytest.mark.parametrize(
    ("since", "n", "kind", "texts", "left"),
    [
        (50.0, 1, Kind.HIT, "a1", "a1 a2"),
        (100.0, 2, Kind.HIT, "a1 a2", "a1 a2"),
        (150.0, 1, Kind.HIT, "a2", "a1 a2"),  # nothing is written, so nothing is dropped
        (150.0, 2, Kind.PARTIAL, "a2 a3", "a3 a2"),
        (150.0, 3, Kind.PARTIAL, "a2 a3 a4", "a3 a2 a4"),
        (250.0, 1, Kind.MISS, "a3", "a3 a2"),
        (250.0, 2, Kind.MISS, "a3 a4", "a3 a4"),
    ],
)
def test_partly_too_old(since: float, n: int, kind: Kind, texts: str, left: str) -> None:
    """Fresh samples would be generated again, or old ones be given as fresh."""
    way = Way()
    way.ask(body(), now=100.0)
    way.ask(body(n=2), now=200.0)
    assert way.texts(body(n=n), now=300.0, terms=seconds(since)) == (kind, texts)
    want = len(left.split())
    assert way.texts(body(n=want)) == (Kind.HIT, left)
    assert way.store.samples == want


@pytest.mark.parametrize("asked", [body(), body(n=2), body(["a", "b"]), body(["a", "a"])], ids=str)
def test_refresh(asked: dict[str, Any]) -> None:
    """What is stored would be answered, or would stay, and be answered the next time, whatever the
    clock says."""
    way = Way()
    total = way.know(asked).call.total
    _, first = way.texts(asked, now=100.0)
    for now in (100.0, 300.0, 200.0):
        kind, again = way.texts(asked, now=now, terms=REFRESH)
        assert (kind, set(again.split()) & set(first.split())) == (Kind.MISS, set())
        assert way.store.samples == total
        assert way.texts(asked) == (Kind.HIT, again)
        first = f"{first} {again}"


def test_refresh_of_a_part() -> None:
    """Who has five samples and asks for one anew would lose the other four."""
    way = Way()
    way.ask(body(n=5), now=100.0)
    assert way.texts(body(), now=200.0, terms=REFRESH) == (Kind.MISS, "a6")
    assert way.texts(body(n=5)) == (Kind.HIT, "a6 a2 a3 a4 a5")
    assert way.texts(body(n=2), now=300.0, terms=REFRESH) == (Kind.MISS, "a7 a8")
    assert way.texts(body(n=5)) == (Kind.HIT, "a7 a8 a3 a4 a5")
    assert way.texts(body(n=7), now=300.0, terms=REFRESH)[0] is Kind.MISS
    assert way.store.samples == 7


def test_refresh_by_a_clock_that_was_set_back() -> None:
    """Nobody could get rid of an answer until the clock is where it was."""
    way = Way()
    way.ask(body(), now=900.0)
    assert way.texts(body(), now=100.0, terms=REFRESH) == (Kind.MISS, "a2")
    assert way.texts(body(), now=100.0) == (Kind.HIT, "a2")


def test_denied_terms() -> None:
    """A client that wants no stored answer would get one after all."""
    way = Way()
    way.ask(body())
    terms = Terms(inf, Reason.NO_STORE, Reason.ONLY_IF_CACHED)
    for again in (way, Way(way.store)):
        assert isinstance(again.find(body(), terms=terms), Known)
    assert isinstance(way.find(body(), terms=Terms(denial=Reason.OFFLINE)), Hit)


def test_too_old_prompts_of_a_batch() -> None:
    """A fresh prompt of a batch would be generated again, or an old one not be."""
    way = Way()
    way.ask(body("a"), now=100.0)
    way.ask(body("b"), now=200.0)
    asked = body(["a", "b"])
    assert way.texts(asked, now=300.0, terms=seconds(150.0)) == (Kind.PARTIAL, "a3 b2")
    assert way.received[-1]["text"] == ["a"]
    assert way.texts(asked) == (Kind.HIT, "a3 b2")


def test_readonly() -> None:
    """`--mode readonly` would write, or not answer from what is there."""
    way = Way()
    terms = Terms(refusal=Reason.READONLY)
    done = way.complete(way.fetch(body(), terms=terms), native("x"))
    assert done == Done(200, None, Reason.READONLY, 1)
    assert way.store.samples == 0
    way.ask(body())
    assert way.texts(body(), terms=terms) == (Kind.HIT, "a1")
    assert way.texts(body(n=2), terms=terms) == (Kind.PARTIAL, "a1 a2")
    assert way.store.samples == 1


def test_readonly_with_an_age() -> None:
    """What is too old would be dropped although nothing may be written."""
    way = Way()
    way.ask(body(), now=100.0)
    terms = Terms(150.0, Reason.READONLY)
    assert way.texts(body(), now=200.0, terms=terms) == (Kind.MISS, "a2")
    assert way.texts(body()) == (Kind.HIT, "a1")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (native("x", "abort"), Reason.ABORT),
        (native("x", None), Reason.UNFINISHED),
        (b"<html>", Reason.UNREADABLE),
    ],
)
def test_readonly_is_not_the_first_reason(answer: Any, reason: Reason) -> None:
    """A broken answer would look like a good one that was only not to be stored."""
    way = Way()
    fetch = way.fetch(body(), terms=Terms(refusal=Reason.READONLY))
    assert way.complete(fetch, answer).reason is reason


# Tenants


ANN, BOB = b"a" * 32, b"b" * 32


@pytest.mark.parametrize("asked", [body(), body(n=2), body(["a", "b"])], ids=str)
def test_tenants(asked: dict[str, Any]) -> None:
    """One client's answer would be given to another, though they are to be apart."""
    store = Memory()
    way = Way(store)
    way.ask(asked, tenant=ANN)
    for other in (BOB, b""):
        for same in (way, Way(store)):  # from memory, and by name or key
            assert isinstance(same.find(asked, tenant=other), Known)
    for same in (way, Way(store)):
        assert isinstance(same.find(asked, tenant=ANN), Hit)


def test_tenants_read_one_body() -> None:
    """What is remembered of a body would be one client's answer for all."""
    way = Way()
    asked = body(n=2)
    texts = {tenant: way.texts(asked, tenant=tenant)[1] for tenant in (ANN, BOB, b"")}
    assert len(set(texts.values())) == 3
    for tenant, text in texts.items():
        assert way.texts(asked, tenant=tenant) == (Kind.HIT, text)


def test_tenants_have_the_models_prefix() -> None:
    """A clear of one model's answers would leave those of clients that are apart."""
    way = Way(fingerprint="m")
    found = {way.know(body(), tenant=tenant).key for tenant in (ANN, BOB, b"")}
    assert len(found) == 3
    assert {key[: keys.PREFIX] for key in found} == {keys.prefix("m")}


def test_many_tenants() -> None:
    """Credentials that came once would fill the memory, or their owners lose their answers."""
    way = Way()
    way.ask(body(), tenant=ANN)
    for number in range(2 * TENANTS):
        way.find(body(), tenant=b"%032d" % number)
    assert isinstance(way.find(body(), tenant=ANN), Hit)


# Models


def test_enter() -> None:
    """A model that is gone would go on answering, from memory or by name; or lose its answers."""
    way = Way(fingerprint="m1")
    way.ask(body())
    way.ask(body(n=2))
    for asked in (body(), body(n=2)):
        assert isinstance(way.find(asked), Hit)
    way.enter("m2")
    for asked in (body(), body(n=2)):
        assert isinstance(way.find(asked), Known)
    assert way.texts(body()) == (Kind.MISS, "a3")
    way.enter("m1")
    assert way.texts(body(n=2)) == (Kind.HIT, "a1 a2")
    way.enter("m2")
    assert way.texts(body()) == (Kind.HIT, "a3")


def test_another_turn() -> None:
    """An answer of a model that was changed on the way would be stored as the former one's, also
    where the same one is back by then."""
    way = Way(fingerprint="m")
    fetch = way.fetch(body())
    way.enter("m")
    assert way.complete(fetch, native("x")) == Done(200, None, Reason.MODEL_CHANGED, 1)
    assert way.store.samples == 0
    way.enter("m")
    fetch = way.fetch(body())
    assert way.complete(fetch, native("x")).reason is None


def test_another_turn_before_the_fetch() -> None:
    """One who waited while the model changed would store the new model's answer as the old one's,
    which is a wrong hit when the old one is back."""
    way = Way(fingerprint="m1")
    known = way.know(body())
    assert way.exchange.is_present(known)
    way.enter("m2")
    assert not way.exchange.is_present(known)
    assert way.exchange.is_present(way.know(body()))
    fetch = way.exchange.fetch(known, way.exchange.plan(known))
    assert way.complete(fetch, native("of m2")).reason is Reason.MODEL_CHANGED
    way.enter("m1")
    assert isinstance(way.find(body()), Known)


def test_clear_and_another_turn() -> None:
    """A clear would be explained by something else."""
    way = Way()
    fetch = way.fetch(body())
    way.store.clear()
    way.enter("m")
    assert way.complete(fetch, native("x")).reason is Reason.CLEARED


def test_replaced_samples_are_no_clear() -> None:
    """A fetch would be lost because another one has replaced old samples meanwhile."""
    way = Way()
    way.ask(body("b"), now=100.0)
    fetch = way.fetch(body())
    way.ask(body("b"), now=200.0, terms=seconds(150.0))
    assert way.complete(fetch, native("x")).reason is None


def versions(*names: str | None) -> list[dict[str, Any]]:
    return [native("x", **({"weight_version": name} if name else {})) for name in names]


@pytest.mark.parametrize(
    ("weights", "named", "reason"),
    [
        ("v1", ["v1", "v1"], None),
        ("v1", ["v1", None], None),
        ("v1", [None, None], None),
        ("v1", ["v2", "v2"], Reason.OTHER_WEIGHTS),
        ("v1", ["v2", None], Reason.OTHER_WEIGHTS),
        ("v1", ["v1", "v2"], Reason.MIXED_WEIGHTS),
        ("v1", ["v2", "v3"], Reason.MIXED_WEIGHTS),
        (None, ["v1", "v1"], None),
        (None, ["v1", None], None),
        (None, ["v1", "v2"], Reason.MIXED_WEIGHTS),
        ("", ["", ""], None),
        ("", ["v1", "v1"], Reason.OTHER_WEIGHTS),
    ],
)
def test_weights(weights: str | None, named: list[str | None], reason: Reason | None) -> None:
    """An answer of other weights than the key stands for would be stored under it."""
    way = Way()
    way.enter("m", weights=weights)
    done = way.complete(way.fetch(body(n=2)), versions(*named))
    assert done == Done(200, None, reason, 2)
    assert way.store.samples == (0 if reason else 2)


def test_weights_of_a_part() -> None:
    """As above, of an answer that a stored sample is part of; its client gets it nevertheless."""
    way = Way()
    way.enter("m", weights="v1")
    way.ask(body())
    done = way.complete(way.fetch(body(n=2)), native("new", weight_version="v2"))
    assert done.reason is Reason.OTHER_WEIGHTS
    assert [a["text"] for a in json.loads(done.body or b"")] == ["a1", "new"]
    assert way.store.samples == 1


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


@pytest.mark.parametrize("name", CALLS)
def test_adapters(name: str) -> None:
    """An adapter that was loaded anew would answer as the former one, or cost all others theirs."""
    path, asked = CALLS[name]
    way = Way(fingerprint="m")
    before = way.know(asked, path).keys
    epochs = Epochs()
    epochs.raise_adapter("b")
    way.enter("m", epochs)
    between = way.know(asked, path).keys
    assert (before != between) is ("b" in name.split(":"))
    epochs.raise_adapter("a")
    way.enter("m", epochs)
    after = way.know(asked, path).keys
    assert (between != after) is (not {"a", "a, twice", "a as a model"}.isdisjoint(name.split(":")))
    assert all(key.startswith(keys.prefix("m")) for key in after)


def test_adapters_of_a_batch() -> None:
    """One prompt's adapter would cost the others their answers."""
    way = Way()
    asked = body(["x", "y"], lora_path=["a", "b"])
    way.ask(asked)
    epochs = Epochs()
    epochs.raise_adapter("a")
    way.enter("", epochs)
    assert way.texts(asked) == (Kind.PARTIAL, "x3 y2")


def test_adapters_by_name() -> None:
    """The short cut for bytes that came before would not know that their adapter is another."""
    store = Memory()
    asked = {"named": body(lora_path="a"), "other": body()}
    way = Way(store)
    for call in asked.values():
        way.ask(call)
    epochs = Epochs()
    epochs.raise_adapter("a")
    for again in (way, Way(store)):
        again.enter("", epochs)
        assert isinstance(again.find(asked["named"]), Known)
        assert isinstance(again.find(asked["other"]), Hit)


# What is fetched


@pytest.mark.parametrize(
    ("text", "n", "stored", "busy", "sent", "filled", "is_whole"),
    [
        ("a", None, "", "", "a", "a", True),
        ("a", 3, "", "", "a", "a", True),
        ("a", 3, "a", "", "a", "a", False),
        (["a", "b"], None, "", "", ["a", "b"], "ab", True),
        (["a", "b"], None, "", "a", ["b"], "b", False),
        (["a", "b"], None, "b", "", ["a"], "a", False),
        (["a", "b", "c"], None, "b", "a", ["c"], "c", False),
        (["a", "b"], 2, "b", "a", ["b"], "b", False),
        (["a", "a", "b"], None, "", "b", ["a", "a"], "a", False),
        (["a", "a", "b"], None, "", "a", ["b"], "b", False),
        (["a", "b"], None, "", "cd", ["a", "b"], "ab", True),
    ],
)
def test_busy_pools(
    text: Any, n: int | None, stored: str, busy: str, sent: Any, filled: str, is_whole: bool
) -> None:
    """What others fetch would be fetched twice, or a part be taken for the whole answer."""
    way = Way()
    for prompt in stored:
        way.ask(body(prompt))

    def keys_of(prompts: str) -> set[bytes]:
        return {key_of(prompt) for prompt in prompts}

    known = way.know(body(text, n))
    fetch = way.exchange.fetch(known, way.exchange.plan(known), PLAIN, keys_of(busy))
    asked = body(text, n) if fetch.body is None else json.loads(fetch.body)
    assert asked["text"] == sent
    assert fetch.keys == keys_of(filled)
    assert fetch.is_whole is is_whole


def key_of(prompt: str, fingerprint: str = "") -> bytes:
    (item,) = generate.DIALECT.read(body(prompt)).items
    return keys.Digester(fingerprint, generate.DIALECT.name).key(item)


def test_answer_with_what_others_fetched() -> None:
    """A batch would get another prompt's sample where one of its pools was filled by others."""
    way = Way()
    known = way.know(body(["a", "b"]))
    plan = way.exchange.plan(known)
    other = way.fetch(body("a"))
    fetch = way.exchange.fetch(known, plan, PLAIN, other.keys)
    landed = way.exchange.land(fetch, 200, BytesIO(orjson.dumps([native("b1")])))
    assert landed.split
    new = planning.samples(landed.split.generations, 100.0, 1.0)
    assert way.exchange.commit(fetch, new) is None
    plan = plan.with_samples(new)
    assert list(plan.needs) == [known.keys[0]]
    way.complete(other, native("a1"))
    plan = way.exchange.again(plan)
    assert not plan.needs
    assert [a["text"] for a in json.loads(way.exchange.answer(known, plan))] == ["a1", "b1"]


def test_again_keeps_to_the_terms() -> None:
    """Who wants a fresh answer, and waits for one, would get an old one in the end."""
    way = Way()
    way.ask(body(), now=100.0)
    known = way.know(body(), terms=seconds(150.0))
    plan = way.exchange.plan(known, seconds(150.0))
    assert way.exchange.again(plan, seconds(150.0)).needs
    assert not way.exchange.again(plan).needs


@pytest.mark.parametrize(
    ("asked", "has_key"),
    [
        (body(), True),
        (body(n=3), True),
        (body(["a"]), True),
        (body(rid="r"), True),
        (body(stream=True), True),
        (body(["a", "b"]), False),
    ],
    ids=str,
)
def test_key_of_an_outcome(asked: dict[str, Any], has_key: bool) -> None:
    """A user could not look up in the journal what was answered, or would find something else."""
    store = Memory()
    way = Way(store, "m")
    way.ask({**asked, "stream": False})
    for same in (way, way, Way(store, "m")):  # assembled, from memory, and by name
        hit = same.find(asked)
        assert isinstance(hit, Hit)
        assert hit.outcome.key == (key_of("a", "m") if has_key else b"")
    assert way.know({**asked, "x": 1}).key[:8] == (keys.prefix("m") if has_key else b"")


LIKE: dict[str, tuple[dict[str, Any], bool]] = {
    "the same": ({}, True),
    "rid": ({"rid": "r"}, True),
    "user": ({"user": "u"}, True),
    "usage": ({"stream_options": {"include_usage": True}}, True),
    "usage in each": ({"stream_options": {"continuous_usage_stats": True}}, False),
    "another text": ({"prompt": "b"}, False),
    "more": ({"n": 2}, False),
    "a list": ({"prompt": ["a"]}, False),
    "another model": ({"model": "b"}, False),
}


@pytest.mark.parametrize(("fields", "is_like"), LIKE.values(), ids=LIKE)
def test_likeness(fields: dict[str, Any], is_like: bool) -> None:
    """A call would read along with another's stream, or pay for one that is under way."""
    way = Way()
    asked = {"prompt": "a", "stream": True}
    one, other = (way.know(call, COMPLETIONS) for call in (asked, {**asked, **fields}))
    assert (way.exchange.likeness(one) == way.exchange.likeness(other)) is is_like


def test_likeness_ends() -> None:
    """What is under way before a clear, another model or of another client would be shared."""
    way = Way()
    asked = body(stream=True)
    seen = {way.exchange.likeness(way.know(asked))}
    seen.add(way.exchange.likeness(way.know(asked, tenant=ANN)))
    way.store.clear()
    seen.add(way.exchange.likeness(way.know(asked)))
    way.enter("")
    seen.add(way.exchange.likeness(way.know(asked)))
    assert len(seen) == 4


# Aborted calls


ABORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": (GENERATE, body()),
    "generate, n": (GENERATE, body(n=2)),
    "generate, list": (GENERATE, body(["a", "b"], 2)),
    "generate, rid": (GENERATE, body(rid="mine")),
    "completions": (COMPLETIONS, {"prompt": "a", "model": "m"}),
    "completions, list": (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}),
    "chat": (CHAT, {**CHATTING, "n": 2}),
    "chat, rid": (CHAT, {**CHATTING, "rid": "mine"}),
}


def finishes(answer: Any) -> list[Any]:
    """How each sample of an answer ended."""
    if isinstance(answer, dict) and "choices" in answer:
        return [choice["finish_reason"] for choice in answer["choices"]]
    natives = answer if isinstance(answer, list) else [answer]
    return [native["meta_info"]["finish_reason"]["type"] for native in natives]


@pytest.mark.parametrize(("path", "asked"), ABORTED.values(), ids=ABORTED)
def test_aborted(path: str, asked: dict[str, Any]) -> None:
    """A call that was aborted while it waited would be answered in a shape of its own."""
    way = Way()
    known = way.know(asked, path)
    answer = json.loads(way.exchange.aborted(known, 100.5))
    assert finishes(answer) == ["abort"] * known.call.total
    if asked.get("rid"):
        assert answer.get("id", answer.get("meta_info", {}).get("id")) == "mine"
    done = way.complete(way.fetch({**asked, "rid": None}, path), answer)
    assert done.reason is Reason.ABORT


@pytest.mark.parametrize(("path", "asked"), ABORTED.values(), ids=ABORTED)
def test_aborted_stream(path: str, asked: dict[str, Any]) -> None:
    """As above, of a stream: it would never end, or not say how."""
    way = Way()
    known = way.know({**asked, "stream": True}, path)
    raw = way.exchange.aborted(known, 100.5)
    events = sse.Splitter().feed(raw)
    assert b"".join(events) == raw
    assert events[-1] == sse.DONE
    ended = [reason for event in events[:-1] for reason in finishes(parsed(event)) if reason]
    assert ended == ["abort"] * known.call.total


def test_aborted_stream_that_had_begun() -> None:
    """Who reads the last event of a choice, as it has all of it, would lose what it had."""
    way = Way()
    known = way.know({**body(["a", "b"], rid="r"), "stream": True})
    begun, _ = natives.stream([("so far", 1), ("never sent", 2)], index=1)
    first, second, end = way.exchange.aborted_events(known, 100.5, {1: worded(begun)})
    assert [parsed(event)["text"] for event in (first, second)] == ["", "so far"]
    assert [parsed(event)["index"] for event in (first, second)] == [0, 1]
    assert [finishes(parsed(event)) for event in (first, second)] == [["abort"], ["abort"]]
    assert end == sse.DONE


# Streams


def streamed(way: Way, fetch: Fetch, events: Sequence[Any]) -> tuple[Reason | None, int]:
    """Sends a stream all the way to the store: why it is not there, and how many samples it had."""
    relay = way.exchange.relay(fetch)
    relay.feed(b"".join(worded(event) for event in events) + sse.DONE)
    landed = way.exchange.land_stream(fetch, relay)
    assert (landed.status, landed.body) == (200, b"")
    if landed.split is None or landed.refusal:
        return landed.refusal, 0
    new = planning.samples(landed.split.generations, 100.0, 2.0)
    return way.exchange.commit(fetch, new), len(new)


def test_stream_to_the_store() -> None:
    """A stream would not be a hit, or not for a client that wants JSON."""
    way = Way()
    assert streamed(way, way.fetch(chats.ONE, CHAT), chats.GOOD) == (None, 1)
    hit = way.receive(chats.ONE, CHAT)
    assert isinstance(hit, Hit)
    assert hit.is_stream
    assert hit.longest == hit.saved.tokens > 0
    whole = way.receive({**chats.ONE, "stream": False}, CHAT)
    assert isinstance(whole, Hit)
    assert not whole.is_stream
    assert hit.outcome.key == whole.outcome.key


def test_stream_that_is_not_stored() -> None:
    """What is not to be stored would be, if it comes as a stream."""
    way = Way()
    way.enter("m", weights="v1")
    assert streamed(way, way.fetch(chats.ONE, CHAT), chats.GOOD[:-2]) == (Reason.UNFINISHED, 0)
    fetch = way.fetch(chats.ONE, CHAT, terms=Terms(refusal=Reason.READONLY))
    assert streamed(way, fetch, chats.GOOD) == (Reason.READONLY, 0)
    for name, reason in {"v1": None, "v2": Reason.OTHER_WEIGHTS}.items():
        events = natives.stream([("s", 1)])
        for event in events:
            event["meta_info"]["weight_version"] = name
        found = streamed(way, way.fetch({**natives.ONE, "text": name}), events)
        assert found[0] is reason
    fetch = way.fetch(chats.ONE, CHAT)
    way.enter("m", weights="v1")
    assert streamed(way, fetch, chats.GOOD)[0] is Reason.MODEL_CHANGED
    assert way.store.samples == 1


def test_document_instead_of_a_stream() -> None:
    """JSON is passed on to a stream's client as it is, but for the ids."""
    way = Way()
    whole = way.exchange.land(way.fetch(chats.ONE, CHAT), 200, BytesIO(b"{}"))
    assert whole == Landed(200, b"{}", refusal=Reason.UNREADABLE)


NUMBERS = b"[" + b",".join([b"0.5"] * 1_000_000) + b"]"
TOO_LARGE = {
    "a long text": (GENERATE, b'{"text":"%b"}' % (b"a" * 11_000_000)),
    "many prompts": (GENERATE, b'{"text":[%b]}' % b",".join([b'"a"'] * 10_001)),
    "many samples": (COMPLETIONS, b'{"prompt":["a","b","c"],"n":3500}'),
    "embeddings": (GENERATE, b'{"input_embeds":[%b]}' % NUMBERS),
    "empty lists": (CHAT, b'{"messages":["a"],"x":[%b[]]}' % (b"[]," * 400_000)),
}


def test_large_hit() -> None:
    """Others would wait while a large answer is put together: whoever looks it up does it there."""
    way, count = Way(), policy.LARGE_SAMPLES
    call = {"text": ["a"] * count, "sampling_params": {"n": 1}}
    native = {"text": "b", "output_ids": [1], "meta_info": {"finish_reason": {"type": "stop"}}}
    fetch = way.fetch(call)
    way.complete(fetch, [native] * count)
    known = way.know(call)
    plan = way.exchange.plan(known)
    assert not plan.needs
    assert len(orjson.loads(way.exchange.hit(known, plan, 100.0).body)) == count
    fewer = {**call, "text": ["a"] * (count - 1)}
    assert isinstance(way.find(fewer), Hit)


@pytest.mark.parametrize(("path", "raw"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_too_large(path: str, raw: bytes) -> None:
    """Nobody else would be served for as long as it takes to read, to name or to split it."""
    found = Way().find(raw, path)
    assert isinstance(found, Bypass)
    assert found.outcome.reason is Reason.TOO_LARGE


def test_key_where_no_model_is_known() -> None:
    """A key would be shown of which nobody knows whose it is."""
    assert Way(Memory(), "").know(body()).key == b""
    assert Way(Memory(), "m").know(body()).key == key_of("a", "m")


def test_many_rids() -> None:
    """To put each client's id into an answer took time that grew with the square of their number:
    here, minutes."""
    way, count = Way(), policy.MAX_SAMPLES
    rids = [f"mine-{i}" for i in range(count)]
    fetch = way.fetch({"text": ["a"] * count, "rid": rids, "sampling_params": {"n": 1}})
    sent = fetch.fill.body["rid"]
    native = {"text": "b", "output_ids": [1], "meta_info": {"finish_reason": {"type": "stop"}}}
    answer = [{**native, "meta_info": {**native["meta_info"], "id": rid}} for rid in sent]
    done = way.complete(fetch, answer)
    assert done.body
    assert [native["meta_info"]["id"] for native in orjson.loads(done.body)] == rids


TELLS = {
    COMPLETIONS: ({"model": "m", "prompt": ["a", "b"], "max_tokens": 8}, "return_token_ids"),
    CHAT: ({"model": "m", "messages": [{"role": "user", "content": "a"}], "n": 2},
           "return_meta_info"),
}  # fmt: skip


def told(k: int) -> dict[str, Any]:
    """A choice that also has what its client has not asked for."""
    message = {"role": "assistant", "content": f"{k}"}
    more = {"token_ids": [1, 2], "prompt_token_ids": [3], "meta_info": {"completion_tokens": 2}}
    logprobs = {"tokens": ["a", "b"], "content": [{"token": "a"}, {"token": "b"}]}
    said = {"text": f"{k}", "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    return {"index": k, **said, **more}


def test_a_large_answer_that_tells_more() -> None:
    """It comes to the same as a small one, whose client does not see what only we have asked for;
    it is read and written a choice at a time, and only once in memory."""
    way = Way()
    way.enter("m")
    for path, count in itertools.product(TELLS, (2, 3)):  # the latter is one too many
        body, asked = TELLS[path]
        fetch = way.fetch(body, path)
        assert fetch.body is not None
        assert orjson.loads(fetch.body)[asked] is True
        usage = {"prompt_tokens": 2 if path == COMPLETIONS else 1, "completion_tokens": 4}
        filler = "x" * slices.LARGE
        found = []
        for large in ("", filler):
            choices = [told(k) for k in range(count)]
            answer = BytesIO(orjson.dumps({"choices": choices, "usage": usage, "id": large}))
            pauses = itertools.count()
            found.append(way.exchange.land(fetch, 200, answer, partial(next, pauses)))
            assert answer.closed
        small, large_one = (
            (orjson.loads(one.body), one.refusal, one.split and len(one.split.generations))
            for one in found
        )
        assert large_one == ({**small[0], "id": filler}, *small[1:]), (path, count)
        assert small[1] is (None if count == 2 else Reason.UNREADABLE), (path, count)
        assert not {*fetch.fill.added} & {n for c in small[0]["choices"] for n in c}, path
        assert next(pauses) == 2 * count, path  # as it is read, and as it is written

"""Whole ways of requests through the cache."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from sglang_cached_addon.cache import Sample
from sglang_cached_addon.dialects import chat, completions, generate, registry
from sglang_cached_addon.exchange import (
    Bypass,
    Completed,
    Exchange,
    Fetch,
    Hit,
    Request,
    error_body,
)
from sglang_cached_addon.outcome import Kind
from sglang_cached_addon.policy import Reason
from sglang_cached_addon.store.memory import Memory

JSON = {b"content-type": b"application/json"}
GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"


class Store(Memory):
    def append(  # type: ignore[override]
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
    ) -> None:
        super().append(key, dialect, samples, raw)


class Way:
    """A client, the exchange, and an upstream that answers `/generate` as SGLang does."""

    def __init__(self, store: Store | None = None, fingerprint: str = "") -> None:
        numbers = itertools.count(1)
        self.store = Store() if store is None else store
        self.exchange = Exchange(
            registry([generate.DIALECT, completions.DIALECT, chat.DIALECT]),
            self.store,
            lambda: f"{next(numbers):032x}",
            fingerprint,
        )
        self.received: list[dict[str, Any]] = []
        self.generated = 0

    def receive(
        self, body: Any, path: str = GENERATE, now: float = 100.0, method: str = "POST"
    ) -> Hit | Fetch | Bypass:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.exchange.receive(Request(method, path, JSON, raw), now)

    def fetch(self, body: Any, path: str = GENERATE) -> Fetch:
        decision = self.receive(body, path)
        assert isinstance(decision, Fetch)
        return decision

    def complete(self, fetch: Fetch, answer: Any, status: int = 200) -> Completed:
        raw = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        return self.exchange.complete(fetch, status, raw, now=100.0, seconds=2.0)

    def generate(self, body: dict[str, Any]) -> bytes:
        """Upstream's answer; texts tell prompts, and never come twice."""
        self.received.append(body)
        n = body.get("sampling_params", {}).get("n", 1)
        batched = isinstance(body["text"], list)
        prompts = body["text"] if batched else [body["text"]]
        rids = body.get("rid") if n == 1 else None
        natives = []
        for i, prompt in enumerate(prompts):
            for _ in range(n):
                self.generated += 1
                rid = rids[i] if isinstance(rids, list) else rids
                meta = {
                    "id": rid or f"own{self.generated}",
                    "finish_reason": {"type": "stop"},
                    "completion_tokens": 3,
                }
                natives.append({"text": f"{prompt}{self.generated}", "meta_info": meta})
        return orjson.dumps(natives if batched or n > 1 else natives[0])

    def ask(self, body: dict[str, Any], now: float = 100.0) -> tuple[Kind, Any]:
        """Sends a request all the way."""
        decision = self.receive(body, now=now)
        if isinstance(decision, Hit):
            return decision.outcome.kind, json.loads(decision.body)
        assert isinstance(decision, Fetch)
        sent = body if decision.body is None else json.loads(decision.body)
        raw = self.generate(sent)
        done = self.complete(decision, raw)
        assert done.status == 200
        return done.outcome.kind, json.loads(raw if done.body is None else done.body)

    def texts(self, body: dict[str, Any]) -> tuple[Kind, str]:
        kind, answer = self.ask(body)
        natives = answer if isinstance(answer, list) else [answer]
        return kind, " ".join(native["text"] for native in natives)

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
    assert way.counts == {
        "hits": 1,
        "misses": 1,
        "partial_hits": 0,
        "collapsed": 0,
        "hit_rate": 0.5,
        "bypasses": {},
        "not_stored": {},
        "samples_from_cache": 1,
        "samples_from_upstream": 1,
        "tokens_saved": 3,
        "upstream_seconds_saved": 2.0,
    }


def test_miss_is_untouched() -> None:
    """Upstream or client would see other bytes than without the proxy."""
    way = Way()
    fetch = way.fetch(b' {"text" : "a", "odd":1.0e0 }')
    assert fetch.body is None
    raw = b'{ "text":"x", "meta_info": {"finish_reason": {"type":"stop"}} }'
    done = way.complete(fetch, raw)
    assert (done.body, done.status, done.outcome.kind) == (None, 200, Kind.MISS)


def test_one_then_three_then_two() -> None:
    """Growing `n` would generate again what is stored, or shrinking it give other samples."""
    way = Way()
    assert way.texts(body(n=1)) == (Kind.MISS, "a1")
    assert way.texts(body(n=3)) == (Kind.PARTIAL, "a1 a2 a3")
    assert way.texts(body(n=2)) == (Kind.HIT, "a1 a2")
    assert way.texts(body()) == (Kind.HIT, "a1")
    assert way.texts(body(n=4)) == (Kind.PARTIAL, "a1 a2 a3 a4")
    assert [sent["sampling_params"]["n"] for sent in way.received] == [1, 2, 1]
    counts = way.counts
    assert (counts["hits"], counts["partial_hits"], counts["misses"]) == (2, 2, 1)
    assert (counts["samples_from_cache"], counts["samples_from_upstream"]) == (1 + 2 + 1 + 3, 4)
    assert counts["tokens_saved"] == 3 * 7
    assert counts["upstream_seconds_saved"] == 4.0


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


def test_lookup() -> None:
    """The fast lane would answer otherwise than the ordinary way, or count a request twice."""
    way = Way()
    raw = json.dumps(body()).encode()
    assert way.exchange.lookup("POST", GENERATE, raw, 100.0) is None
    way.ask(body())
    way.ask(body("a", 2))
    fast = way.exchange.lookup("POST", GENERATE, raw, 105.0)
    assert fast == way.receive(raw, now=105.0)
    assert fast
    assert (fast.outcome.kind, fast.outcome.age) == (Kind.HIT, 5)
    assert way.exchange.lookup("POST", GENERATE, json.dumps(body(n=3)).encode(), 100.0) is None
    assert way.exchange.lookup("POST", GENERATE, b"{", 100.0) is None
    counts = way.counts
    assert (counts["hits"], counts["misses"], counts["partial_hits"]) == (2, 1, 1)
    assert counts["bypasses"] == {}


def test_refusal_of_equal_requests() -> None:
    """A request that is refused again would not be counted, or be for another reason."""
    way = Way()
    for _ in range(3):
        decision = way.receive(b'{"text":"a","stream":1}')
        assert isinstance(decision, Bypass)
        assert decision.outcome.reason is Reason.MALFORMED
    assert way.counts["bypasses"] == {"malformed": 3}


def test_equal_bytes_under_another_head() -> None:
    """A head that forbids a hit would be ignored for a body that came before."""
    way = Way()
    way.ask(body())
    raw = json.dumps(body()).encode()
    assert isinstance(way.receive(raw), Hit)
    decision = way.exchange.receive(Request("POST", GENERATE, {}, raw), 100.0)
    assert isinstance(decision, Bypass)


class ByMethod(type(generate.DIALECT)):
    """A third party's dialect that answers for one method alone."""

    def __init__(self, method: str) -> None:
        self.name = f"by-{method.lower()}"
        self.routes = ((method, "/x"),)


def test_methods_of_one_path() -> None:
    """One API's answer would be given to another's client where they share a path."""
    exchange = Exchange(registry([ByMethod("POST"), ByMethod("PUT")]), Store(), lambda: "0" * 32)
    raw = json.dumps(body()).encode()
    fetch = exchange.receive(Request("POST", "/x", JSON, raw), 100.0)
    assert isinstance(fetch, Fetch)
    exchange.complete(fetch, 200, orjson.dumps(native("x")), now=100.0, seconds=1.0)
    assert isinstance(exchange.receive(Request("PUT", "/x", JSON, raw), 100.0), Fetch)


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
    store = Store()
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
    way.exchange.complete(fetch, 200, orjson.dumps(native("x")), now=stored, seconds=1.0)
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
        way.exchange.complete(fetch, 200, orjson.dumps(native("x")), now=now, seconds=1.0)
    hit = way.receive(body(n=2), now=400.0)
    assert isinstance(hit, Hit)
    assert hit.outcome.age == 300


@pytest.mark.parametrize(
    ("raw", "headers", "reason"),
    [
        (b"{", JSON, Reason.INVALID_JSON),
        (b"[]", JSON, Reason.MALFORMED),
        (b'{"text":"a","text":"b"}', JSON, Reason.DUPLICATE_KEY),
        (b'{"text":"a","stream":true,"return_hidden_states":true}', JSON, Reason.STREAM),
        (b'{"text":"a","session_params":{}}', JSON, Reason.STATE),
        (b'{"text":"a","image_data":"a.png"}', JSON, Reason.MEDIA),
        (b'{"text":"a","x":18446744073709551616}', JSON, Reason.INVALID_JSON),
        (b'{"text":"a"}', {}, Reason.CONTENT_TYPE),
        (b'{"text":"a"}', {**JSON, b"origin": b"http://x"}, Reason.CROSS_ORIGIN),
        (b'{"text":"a"}', {**JSON, b"content-encoding": b"gzip"}, Reason.ENCODED),
    ],
)
def test_bypass(raw: bytes, headers: dict[bytes, bytes], reason: Reason) -> None:
    """What is not understood would be answered from the cache, or not be told and counted."""
    way = Way()
    way.ask({"text": "a"})
    decision = way.exchange.receive(Request("POST", GENERATE, headers, raw), 100.0)
    assert isinstance(decision, Bypass)
    assert (decision.outcome.kind, decision.outcome.reason) == (Kind.BYPASS, reason)
    assert way.counts["bypasses"] == {str(reason): 1}
    assert (way.counts["hits"], way.counts["misses"]) == (0, 1)


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
    assert (done.body, done.status, done.outcome.reason) == (None, status, Reason.STATUS)
    assert done.outcome.kind is (Kind.PARTIAL if partial else Kind.MISS)
    assert done.outcome.status == status
    assert way.store.samples == partial
    assert way.counts["not_stored"] == {"status": 1}
    assert way.counts["samples_from_cache"] == 0
    assert way.counts["samples_from_upstream"] == partial


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
    assert (done.body, done.status, done.outcome.reason) == (None, 200, reason)
    way.complete(way.fetch(body()), native("good"))
    done = way.complete(way.fetch(body(n=3)), [native("new"), bad])
    assert (done.status, done.outcome.kind, done.outcome.reason) == (200, Kind.PARTIAL, reason)
    assert [a["text"] for a in json.loads(done.body or b"")] == ["good", "new", "x"]
    assert way.store.samples == 1
    assert way.counts["not_stored"] == {str(reason): 2}


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
    assert (done.body, done.status, done.outcome.reason) == (None, 200, reason)
    assert way.store.samples == 0
    assert way.counts["not_stored"] == {str(reason): 1}


@pytest.mark.parametrize(("raw", "reason"), UNREADABLE)
def test_unreadable_answer_to_a_trimmed_request(raw: bytes, reason: Reason) -> None:
    """A client would get fewer samples than it asked for, without a word."""
    way = Way()
    way.ask(body())
    done = way.complete(way.fetch(body(n=2)), raw)
    assert (done.status, done.outcome.reason, done.outcome.kind) == (502, reason, Kind.PARTIAL)
    error = json.loads(done.body or b"")["error"]
    assert (error["code"], error["type"]) == (502, "BadGateway")
    assert "1 of 2" in error["message"]
    assert way.store.samples == 1
    assert way.counts["samples_from_cache"] == 0


def test_unreadable_samples_are_not_counted() -> None:
    """`samples_from_upstream` would grow by samples that nobody got."""
    way = Way()
    way.ask(body())
    way.complete(way.fetch(body(n=2)), b"<html>")
    assert way.counts["samples_from_upstream"] == 1


@pytest.mark.parametrize(
    ("reason", "status"), [(Reason.UNREACHABLE, 502), (Reason.CUT, 502), (Reason.STATUS, 503)]
)
@pytest.mark.parametrize("partial", [False, True])
def test_fail(reason: Reason, status: int, partial: bool) -> None:
    """A lost upstream would be counted as an answer, or the next try be a hit."""
    way = Way()
    if partial:
        way.ask(body())
    done = way.exchange.fail(way.fetch(body(n=2)), reason, status)
    assert (done.body, done.status) == (None, status)
    assert (done.outcome.reason, done.outcome.status) == (reason, status)
    assert way.counts["not_stored"] == {str(reason): 1}
    assert way.counts["samples_from_cache"] == 0
    assert way.counts["samples_from_upstream"] == partial
    assert isinstance(way.receive(body(n=2)), Fetch)


def abort(rid: Any) -> bytes:
    return json.dumps({"rid": rid}).encode()


def test_abort_targets() -> None:
    """An abort would stop nothing, because upstream knows another id."""
    way = Way()
    assert way.exchange.abort_targets(abort("r")) == []
    first = way.fetch(body(rid="r"))
    sent = json.loads(first.body or b"")["rid"]
    assert way.exchange.abort_targets(abort("r")) == [sent]
    second = way.fetch(body(rid="r"))
    other = json.loads(second.body or b"")["rid"]
    assert sent != other
    assert way.exchange.abort_targets(abort("r")) == [sent, other]
    way.complete(first, native("x"))
    assert way.exchange.abort_targets(abort("r")) == [other]
    way.exchange.fail(second, Reason.CUT, 502)
    assert way.exchange.abort_targets(abort("r")) == []


def test_abort_targets_of_a_batch() -> None:
    """A prompt of a batch could not be aborted, or a stored one would be looked for."""
    way = Way()
    way.ask(body("b"))
    fetch = way.fetch(body(["a", "b", "c"], rid=["x", "y", "z"]))
    sent = json.loads(fetch.body or b"")["rid"]
    targets = [way.exchange.abort_targets(abort(rid)) for rid in ("x", "y", "z")]
    assert targets == [[sent[0]], [], [sent[1]]]
    way.complete(fetch, [native("x"), native("z")])
    assert [way.exchange.abort_targets(abort(rid)) for rid in ("x", "y", "z")] == [[], [], []]


@pytest.mark.parametrize("status", [400, 503])
def test_abort_targets_after_an_error(status: int) -> None:
    """Ids of requests long gone would fill the memory."""
    way = Way()
    way.complete(way.fetch(body(rid="r")), b"", status)
    assert way.exchange.abort_targets(abort("r")) == []


def test_abort_targets_after_an_unreadable_answer() -> None:
    """Ids of requests long gone would fill the memory."""
    way = Way()
    way.complete(way.fetch(body(rid="r")), b"<html>")
    assert way.exchange.abort_targets(abort("r")) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"r"',
        b"{}",
        abort(None),
        abort(["r"]),
        abort({}),
        abort(1),
        abort(""),
        abort("R"),
        abort("r "),
        b'{"abort_all":true}',
    ],
)
def test_other_aborts(raw: bytes) -> None:
    """An abort of something else would stop this request, or end in a traceback."""
    way = Way()
    way.fetch(body(rid="r"))
    assert way.exchange.abort_targets(raw) == []


def test_changed_target_list() -> None:
    """Whoever changes the list would lose track of requests in flight."""
    way = Way()
    way.fetch(body(rid="r"))
    way.exchange.abort_targets(abort("r")).clear()
    assert len(way.exchange.abort_targets(abort("r"))) == 1


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
    assert done.outcome.kind is Kind.MISS
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
    """A request that has to be written anew would end in a traceback, and its `rid` stay known."""
    way = Way()
    raw = b'{"text":"a","rid":"r","%s":%s}' % (field.encode(), value)
    assert isinstance(way.receive(raw), Bypass)
    assert way.exchange.abort_targets(abort("r")) == []


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
        assert isinstance(decision, Fetch if done.outcome.reason else Hit)


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
    done = way.complete(fetch, native("a1"))
    assert (done.outcome.reason, done.status) == (Reason.CLEARED, 200)
    assert way.counts["not_stored"] == {"cleared": 1}
    assert isinstance(way.receive(body()), Fetch)


def test_the_very_bytes_of_a_plain_call() -> None:
    """Bytes that came before would be read again after a restart, or answer another call."""
    store = Store()
    Way(store).ask(body())
    raw = json.dumps(body()).encode()
    again = Way(store)
    hit = again.exchange.lookup("POST", GENERATE, raw, 107.0)
    assert hit is not None
    assert json.loads(hit.body)["text"] == "a1"
    assert (hit.outcome.age, again.counts["hits"], again.counts["tokens_saved"]) == (7, 1, 3)
    # The same bytes mean something else to another API, and to another model.
    assert again.exchange.lookup("POST", CHAT, raw, 107.0) is None
    assert Way(store, "other").exchange.lookup("POST", GENERATE, raw, 107.0) is None
    store.clear()
    assert again.exchange.lookup("POST", GENERATE, raw, 107.0) is None


@pytest.mark.parametrize(
    "asked", [body(n=2), body(["a"]), body(rid="r"), body(n=2, rid="r")], ids=str
)
def test_only_a_plain_call_has_a_name(asked: dict[str, Any]) -> None:
    """A call for more than one sample, for an array or with a rid would get a lone answer."""
    store = Store()
    first = Way(store).ask(asked)[1]
    kind, second = Way(store).ask(asked)
    assert kind is Kind.HIT
    assert second == first

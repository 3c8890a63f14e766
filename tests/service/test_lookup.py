"""What is found for a call: hits, what is known, and why a call is not looked up."""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson

from sglang_cached_addon.core import keys, policy
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.outcome import Kind, Saved
from sglang_cached_addon.core.policy import PLAIN, Reason
from sglang_cached_addon.dialects import generate, registry
from sglang_cached_addon.service.findings import Bypass, Fetch, Hit, Known
from sglang_cached_addon.service.lookup import LARGE_BYTES, TENANTS
from sglang_cached_addon.store.memory import MemoryPools
from tests.service.exchanging import (
    ANN,
    BOB,
    CALLS,
    CHAT,
    COMPLETIONS,
    FIELDS,
    GENERATE,
    ODD,
    Way,
    body,
    key_of,
    native,
    nested,
    seconds,
)
from tests.tables import each


def test_hit_is_not_counted_when_it_is_found() -> None:
    """A hit that waits for upstream's word on who may see it would count before it is given."""
    way = Way()
    way.ask(body())
    hit = way.find(body())
    assert isinstance(hit, Hit)
    assert hit.saved == Saved(1, 3, 2.0)
    assert not any(value for value in way.counts.values())


def test_large_answers_are_hits_every_time() -> None:
    """An answer that is too large to be kept ready is the same each time, until it is cleared."""
    way = Way()
    texts = [str(k) * (1 << 20) for k in range(6)]
    request = body(n=6)
    way.complete(way.fetch(request), [native(text) for text in texts])
    for _ in range(2):
        known, lookup = way.know(request), way.exchange.lookup
        plan = lookup.plan(known)
        assert not plan.needs
        hit = lookup.hit(known, plan, 100.0)
        assert [a["text"] for a in orjson.loads(hit.body)] == texts
    way.store.clear()
    assert way.exchange.lookup.plan(known).needs


def test_counts_nothing() -> None:
    """What is found is not counted yet: who asks is looked at afterwards."""
    way = Way()
    way.ask(body())
    way.ask(body("a", 2))
    hit = way.exchange.lookup.find("POST", GENERATE, json.dumps(body()).encode(), 105.0)
    assert isinstance(hit, Hit)
    assert (hit.outcome.kind, hit.outcome.age) == (Kind.HIT, 5)
    short = json.dumps(body(n=3)).encode()
    assert isinstance(way.exchange.lookup.find("POST", GENERATE, short, 100.0), Known)
    assert way.exchange.lookup.find("POST", GENERATE, b"{", 100.0) is Reason.INVALID_JSON
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
    way.exchange.lookup.dialects = registry([ByMethod("POST"), ByMethod("PUT")])
    way.complete(way.fetch(body(), "/x"), native("x"))
    assert isinstance(way.receive(body(), "/x"), Hit)
    assert isinstance(way.receive(body(), "/x", method="PUT"), Fetch)


@each(
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
    store = MemoryPools()
    Way(store, "m1").ask(body())
    assert isinstance(Way(store, "m2").receive(body()), Fetch)
    assert isinstance(Way(store, "m1").receive(body()), Hit)


@each(
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


@each(
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


@each(
    ("field", "value"),
    [("priority", b"1" + b"0" * 30), ("custom_labels", nested(300))],
    ids=["integer", "nesting"],
)
def test_transport_that_cannot_be_written(field: str, value: bytes) -> None:
    """A request that has to be written anew would end in a traceback."""
    raw = b'{"text":"a","rid":"r","%s":%s}' % (field.encode(), value)
    assert isinstance(Way().receive(raw), Bypass)


@each(
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


@each("path", [GENERATE, COMPLETIONS, CHAT])
@each("field", FIELDS)
def test_odd_values(path: str, field: str) -> None:
    """A mistake in a request would end in a traceback instead of upstream's explanation."""
    way = Way()
    for text, value in itertools.product(("a", ["a", "b"]), ODD):
        whole = {"text": text, "prompt": text, "messages": [{"content": "a"}], field: value}
        decision = way.receive(whole, path)
        assert isinstance(decision, Fetch | Bypass)


def test_the_very_bytes_of_a_plain_call() -> None:
    """Bytes that came before would be read again after a restart, or answer another call."""
    store = MemoryPools()
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


@each("asked", [body(n=2), body(["a"]), body(rid="r"), body(n=2, rid="r")], ids=str)
def test_only_a_plain_call_has_a_name(asked: dict[str, Any]) -> None:
    """A call for more than one sample, for an array or with a rid would get a lone answer."""
    store = MemoryPools()
    first = Way(store).ask(asked)[1]
    kind, second = Way(store).ask(asked)
    assert kind is Kind.HIT
    assert second == first


# Terms


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
    store = MemoryPools()
    Way(store).ask(body(), now=100.0)
    assert isinstance(Way(store).find(body(), terms=seconds(101.0)), Known)
    assert isinstance(Way(store).find(body(), terms=seconds(100.0)), Hit)
    assert isinstance(Way(store).find(body()), Hit)


@each("asked", [body(), body(n=2), body(["a", "b"])], ids=str)
def test_tenants(asked: dict[str, Any]) -> None:
    """One client's answer would be given to another, though they are to be apart."""
    store = MemoryPools()
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


@each("name", CALLS)
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


def test_adapters_by_name() -> None:
    """The short cut for bytes that came before would not know that their adapter is another."""
    store = MemoryPools()
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


@each(
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
    store = MemoryPools()
    way = Way(store, "m")
    way.ask({**asked, "stream": False})
    for same in (way, way, Way(store, "m")):  # assembled, from memory, and by name
        hit = same.find(asked)
        assert isinstance(hit, Hit)
        assert hit.outcome.key == (key_of("a", "m") if has_key else b"")
    assert way.know({**asked, "x": 1}).key[:8] == (keys.prefix("m") if has_key else b"")


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
    plan = way.exchange.lookup.plan(known)
    assert not plan.needs
    assert len(orjson.loads(way.exchange.lookup.hit(known, plan, 100.0).body)) == count
    fewer = {**call, "text": ["a"] * (count - 1)}
    assert isinstance(way.find(fewer), Hit)


def test_large_samples() -> None:
    """What many bytes are put together of is left to who answers, each time; what is one sample as
    it is stored is at hand at once."""
    way = Way()
    native = {
        "text": "b" * LARGE_BYTES,
        "output_ids": [1],
        "meta_info": {"finish_reason": {"type": "stop"}},
    }
    for n, is_large in ((1, False), (2, True)):
        call = {"text": f"{n}", "sampling_params": {"n": n}}
        way.complete(way.fetch(call), [native] * n if n > 1 else native)
        assert isinstance(way.find(call), Known if is_large else Hit), n


@each(("path", "raw"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_too_large(path: str, raw: bytes) -> None:
    """Nobody else would be served for as long as it takes to read, to name or to split it."""
    found = Way().find(raw, path)
    assert isinstance(found, Bypass)
    assert found.outcome.reason is Reason.TOO_LARGE


def test_key_where_no_model_is_known() -> None:
    """A key would be shown of which nobody knows whose it is."""
    assert Way(MemoryPools(), "").know(body()).key == b""
    assert Way(MemoryPools(), "m").know(body()).key == key_of("a", "m")

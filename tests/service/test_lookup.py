"""What is found for a call: hits, what is known, and why a call is not looked up."""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson

from sglang_cached_addon.core import keys, policy
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import SGLANG, Server
from sglang_cached_addon.core.outcome import Kind, Saved
from sglang_cached_addon.core.planning import LARGE_BYTES
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects import chat, generate, registry
from sglang_cached_addon.dialects.responses import RESPONSES
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import Bypass, Fetch, Hit, Known
from sglang_cached_addon.store.memory import MemoryStore
from tests.service.exchanging import (
    ANN,
    BOB,
    CALLS,
    CHAT,
    COMPLETIONS,
    FIELDS,
    GENERATE,
    ODD,
    Setup,
    body,
    key_of,
    native,
    nested,
    seconds,
)
from tests.tables import each


def test_what_is_found_is_not_counted() -> None:
    """A look-up counts nothing: who asks is looked at afterwards."""
    setup = Setup()
    setup.ask(body(), now=100.0)
    raw = json.dumps(body()).encode()
    for again in (setup, Setup(setup.store)):  # from memory, and by the name of the bytes
        hit = again.find(raw)
        assert isinstance(hit, Hit)
        assert (hit.outcome.kind, hit.outcome.oldest, hit.saved) == (
            Kind.HIT,
            100.0,
            Saved(1, 3, 2.0),
        )
    assert isinstance(setup.find(body(n=3)), Known)
    assert setup.exchange.lookup.find("POST", GENERATE, b"{") is Reason.INVALID_JSON
    assert not any(setup.counts.values())


class Dated(MemoryStore):
    """A store whose clock is set by hand."""

    day = 5.0

    @property
    def now(self) -> float:
        return 86_400 * self.day


def test_days() -> None:
    """Where a server may put the date into prompts, what is asked on one day (UTC) is another call
    on the next; and of other APIs, and other servers, it is not."""
    body = b'{"model":"m","input":"a","store":false}'
    store = Dated()
    lookup = Exchange(registry([RESPONSES, chat.DIALECT]), store, str).lookup

    def keys_on(day: float, path: str = "/v1/responses", raw: bytes = body) -> tuple[bytes, ...]:
        store.day = day
        known, read = lookup.find("POST", path, raw), lookup.read("POST", path, raw, b"")
        assert isinstance(known, Known) and isinstance(read, Known)
        assert known.keys == read.keys
        return known.keys

    assert keys_on(5.0) == keys_on(5.9999) != keys_on(6.0)
    said = b'{"messages":[{"role":"user","content":"a"}]}'
    assert keys_on(5.0, CHAT, said) == keys_on(6.0, CHAT, said)
    lookup.enter("m", Epochs(), Server(SGLANG, dates_prompts=False), 1)
    assert keys_on(5.0) == keys_on(6.0)


def test_kept_answers() -> None:
    """A call whose answer the server may keep is not looked up."""
    lookup = Exchange(registry([RESPONSES]), MemoryStore(), str).lookup
    for keeps in (True, False):
        lookup.enter("m", Epochs(), Server(SGLANG, keeps_answers=keeps), int(keeps))
        for store in ({}, {"store": None}, {"store": True}):
            raw = orjson.dumps({"input": "a", **store})
            found = lookup.find("POST", "/v1/responses", raw)
            assert (found is Reason.STATE) is keeps
        raw = b'{"input":"a","store":false}'
        assert isinstance(lookup.find("POST", "/v1/responses", raw), Known)


class ByMethod(type(generate.DIALECT)):
    """A third party's dialect that answers for one method alone."""

    def __init__(self, method: str) -> None:
        self.name = f"by-{method.lower()}"
        self.routes = ((method, "/x"),)


def test_methods_of_one_path() -> None:
    """Two APIs that share a path have answers of their own."""
    setup = Setup()
    setup.exchange.lookup.dialects = registry([ByMethod("POST"), ByMethod("PUT")])
    setup.complete(setup.fetch(body(), "/x"), native("x"))
    assert isinstance(setup.receive(body(), "/x"), Hit)
    assert isinstance(setup.receive(body(), "/x", method="PUT"), Fetch)


def test_other_requests() -> None:
    """A call that differs in its body, its API or its model is another one."""
    setup = Setup(fingerprint="m")
    asked = {**body(), "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    setup.complete(setup.fetch(asked), native("x"))
    assert isinstance(setup.receive(asked), Hit)
    assert isinstance(setup.receive(asked, method="PUT"), Hit)
    for other in ({"text": "b"}, {"seed": 1}, {"sampling_params": {"temperature": 0.5}}):
        assert isinstance(setup.receive({**asked, **other}), Fetch)
    for path in (COMPLETIONS, CHAT):
        assert isinstance(setup.receive(asked, path), Fetch)
    assert isinstance(Setup(setup.store, "other").receive(asked), Fetch)
    assert isinstance(Setup(setup.store, "m").receive(asked), Hit)


def test_age() -> None:
    """The age of an answer is that of its oldest sample, whenever it is asked for; by a clock that
    was set back it is 0."""
    setup = Setup()
    setup.ask(body(), now=100.0)
    for again in (setup, Setup(setup.store)):
        hit = again.find(body())
        assert isinstance(hit, Hit)
        for now, age in ((100.0, 0), (100.9, 0), (161.0, 61), (50.0, 0), (130.0, 30)):
            assert hit.outcome.age(now) == age, now
    setup.ask(body(n=2), now=50.0)
    hit = setup.find(body(n=2))
    assert isinstance(hit, Hit)
    assert hit.outcome.age(400.0) == 350


DEEP = b"[" * 900 + b"]" * 900
BYPASSED = [
    (GENERATE, b"{", Reason.INVALID_JSON),
    (GENERATE, b"[]", Reason.MALFORMED),
    (GENERATE, b'{"text":"a","stream":1}', Reason.MALFORMED),
    (GENERATE, b'{"text":"a","text":"b"}', Reason.DUPLICATE_KEY),
    (GENERATE, b'{"text":"a","stream":true,"return_hidden_states":true}', Reason.STREAM),
    (GENERATE, b'{"text":"a","session_params":{}}', Reason.STATE),
    (GENERATE, b'{"text":"a","image_data":"a.png"}', Reason.MEDIA),
    (GENERATE, b'{"text":"a","image_data":%b}' % DEEP, None),
    (CHAT, b'{"messages":[{"content":[{"image_url":%b}]}]}' % DEEP, None),
    (GENERATE, b'{"text":"a","x":18446744073709551616}', Reason.INVALID_JSON),
    # What has to be written anew, and cannot be.
    (GENERATE, b'{"text":"a","rid":"r","priority":1%b}' % (b"0" * 30), None),
    (GENERATE, b'{"text":"a","rid":"r","custom_labels":%b}' % nested(300), None),
]


@each(("path", "raw", "reason"), BYPASSED)
def test_bypass(path: str, raw: bytes, reason: Reason | None) -> None:
    """What is not understood is not looked up, as often as it comes; it is told and counted why."""
    setup = Setup()
    setup.ask({"text": "a"})
    before = setup.counts
    for _ in range(2):
        found = setup.receive(raw, path)
        assert isinstance(found, Bypass)
        assert found.outcome.kind is Kind.BYPASS
        assert reason in (None, found.outcome.reason)
    assert setup.counts == {**before, "bypasses": {str(found.outcome.reason): 2}}


@each("path", [GENERATE, COMPLETIONS, CHAT])
@each("field", FIELDS)
def test_odd_values(path: str, field: str) -> None:
    """A mistake in a call is left to upstream's explanation, and ends in no traceback."""
    setup = Setup()
    for text, value in itertools.product(("a", ["a", "b"]), ODD):
        whole = {"text": text, "prompt": text, "messages": [{"content": "a"}], field: value}
        decision = setup.receive(whole, path)
        assert isinstance(decision, Fetch | Bypass)


def test_the_very_bytes_of_a_plain_call() -> None:
    """Bytes that came before are not read again after a restart, and answer no other call."""
    store = MemoryStore()
    Setup(store).ask(body())
    raw = json.dumps(body()).encode()
    again = Setup(store)
    hit = again.find(raw)
    assert isinstance(hit, Hit)
    assert json.loads(hit.body)["text"] == "a1"
    assert (hit.outcome.oldest, hit.saved.tokens) == (100.0, 3)
    # The same bytes mean something else to another API, and to another model.
    assert not isinstance(again.find(raw, CHAT), Hit)
    assert not isinstance(Setup(store, "other").find(raw), Hit)
    # They are too old for who wants a younger answer.
    assert isinstance(again.find(raw, terms=seconds(100.0)), Hit)
    assert isinstance(Setup(store).find(raw, terms=seconds(101.0)), Known)
    store.clear()
    assert not isinstance(again.find(raw), Hit)


@each("asked", [body(n=2), body(["a"]), body(rid="r"), body(n=2, rid="r")])
def test_only_a_plain_call_has_a_name(asked: dict[str, Any]) -> None:
    """A call for more than one sample, for an array or with a rid gets no lone answer."""
    store = MemoryStore()
    _, first = Setup(store).ask(asked)
    assert Setup(store).ask(asked) == (Kind.HIT, first)


@each("asked", [body(), body(n=2), body(["a", "b"])])
def test_tenants(asked: dict[str, Any]) -> None:
    """Clients that are to be apart have answers of their own, under the model's prefix."""
    store = MemoryStore()
    setup = Setup(store, "m")
    setup.ask(asked, tenant=ANN)
    for again in (setup, Setup(store, "m")):  # from memory, and by name or key
        for tenant in (BOB, b""):
            known = again.find(asked, tenant=tenant)
            assert isinstance(known, Known)
            assert {key[: keys.PREFIX] for key in known.keys} == {keys.prefix("m")}
    for again in (setup, Setup(store, "m")):
        assert isinstance(again.find(asked, tenant=ANN), Hit)


# Models


def test_enter() -> None:
    """A model that is gone answers no more, from memory or by name, and has its answers again when
    it is back."""
    setup = Setup(fingerprint="m1")
    setup.ask(body())
    setup.ask(body(n=2))
    for asked in (body(), body(n=2)):
        assert isinstance(setup.find(asked), Hit)
    setup.enter("m2")
    for asked in (body(), body(n=2)):
        assert isinstance(setup.find(asked), Known)
    assert setup.texts(body()) == (Kind.MISS, "a3")
    setup.enter("m1")
    assert setup.texts(body(n=2)) == (Kind.HIT, "a1 a2")
    setup.enter("m2")
    assert setup.texts(body()) == (Kind.HIT, "a3")


@each("name", CALLS)
def test_adapters(name: str) -> None:
    """An adapter that was loaded anew does not answer as the former one; nothing else changes."""
    path, asked = CALLS[name]
    setup, epochs, found = Setup(fingerprint="m"), Epochs(), [()]
    for raised in ("", "b", "a"):
        if raised:
            epochs.raise_adapter(raised)
            setup.enter("m", epochs)
        found.append(setup.know(asked, path).keys)
        assert all(key.startswith(keys.prefix("m")) for key in found[-1])
    _, before, between, after = found
    assert (before != between) is ("b" in name.split(":"))
    assert (between != after) is (not {"a", "a, twice", "a as a model"}.isdisjoint(name.split(":")))


def test_adapters_by_name() -> None:
    """The name of bytes that came before knows that their adapter is another."""
    setup, epochs = Setup(), Epochs()
    for call in (body(lora_path="a"), body()):
        setup.ask(call)
    epochs.raise_adapter("a")
    for again in (setup, Setup(setup.store)):
        again.enter("", epochs)
        assert isinstance(again.find(body(lora_path="a")), Known)
        assert isinstance(again.find(body()), Hit)


@each("asked", [body(), body(n=3), body(["a"]), body(rid="r"), body(stream=True), body(["a", "b"])])
def test_key_of_an_outcome(asked: dict[str, Any]) -> None:
    """A hit tells the key under which its answer is in the journal, where it has one."""
    store, has_key = MemoryStore(), asked["text"] != ["a", "b"]
    setup = Setup(store, "m")
    setup.ask({**asked, "stream": False})
    for same in (setup, setup, Setup(store, "m")):  # assembled, from memory, and by name
        hit = same.find(asked)
        assert isinstance(hit, Hit)
        assert hit.outcome.key == (key_of("a", "m") if has_key else b"")
    assert setup.know({**asked, "x": 1}).key[:8] == (keys.prefix("m") if has_key else b"")


NUMBERS = b"[" + b",".join([b"0.5"] * 1_000_000) + b"]"


TOO_LARGE = {
    "a long text": (GENERATE, b'{"text":"%b"}' % (b"a" * 11_000_000)),
    "many prompts": (GENERATE, b'{"text":[%b]}' % b",".join([b'"a"'] * 10_001)),
    "many samples": (COMPLETIONS, b'{"prompt":["a","b","c"],"n":3500}'),
    "embeddings": (GENERATE, b'{"input_embeds":[%b]}' % NUMBERS),
    "empty lists": (CHAT, b'{"messages":["a"],"x":[%b[]]}' % (b"[]," * 400_000)),
}


def test_large_hits() -> None:
    """What many samples, or many bytes, are put together of is left to who answers, beside the
    event loop, each time; what is one sample as it is stored is at hand at once."""
    setup, many = Setup(), policy.LARGE_SAMPLES
    for count, text, is_large in ((many, "b", True), (1, "b" * LARGE_BYTES, False),
                                  (2, "b" * LARGE_BYTES, True)):  # fmt: skip
        call = body(f"{count}", count) if len(text) > 1 else body([text] * count)
        setup.complete(setup.fetch(call), [native(text)] * count if count > 1 else native(text))
        found = setup.find(call)
        if is_large:
            known = setup.know(call)
            plan = setup.exchange.lookup.plan(known)
            assert not plan.needs
            found = setup.exchange.lookup.hit(known, plan)
            assert isinstance(setup.find(call), Known)
        assert isinstance(found, Hit)
        said = orjson.loads(found.body)
        assert [one["text"] for one in (said if count > 1 else [said])] == [text] * count
    assert isinstance(setup.find(body(["b"] * (many - 1))), Hit)


@each(("path", "raw"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_too_large(path: str, raw: bytes) -> None:
    """A call is not looked up that takes long to read, to name or to split."""
    found = Setup().find(raw, path)
    assert isinstance(found, Bypass)
    assert found.outcome.reason is Reason.TOO_LARGE


def test_key_where_no_model_is_known() -> None:
    """No key is shown of which nobody knows whose it is."""
    assert Setup(MemoryStore(), "").know(body()).key == b""
    assert Setup(MemoryStore(), "m").know(body()).key == key_of("a", "m")

"""What is short of calls: fetched, read, stored and answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from math import inf
from typing import Any

import orjson

from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.core.policy import PLAIN, Reason, Terms
from sglang_cached_addon.service.findings import Fetch, Hit, Known, Landed
from tests.dialects import test_chat_stream as chats
from tests.dialects import test_generate_stream as natives
from tests.service.exchanging import (
    ANN,
    CHAT,
    COMPLETIONS,
    GENERATE,
    ODD,
    REFRESH,
    Done,
    Setup,
    body,
    key_of,
    native,
    seconds,
    streamed,
    versions,
)
from tests.tables import each

Options = dict[str, Any]
OLD, NEW = {"now": 300.0, "terms": seconds(150.0)}, {"now": 300.0, "terms": seconds(250.0)}
ANEW = {"now": 200.0, "terms": REFRESH}
READ = {"terms": Terms(refusal=Reason.READONLY)}
LORA = body(["x", "y"], lora_path=["a", "b"])

SCENES: dict[str, list[tuple[dict[str, Any], str] | tuple[dict[str, Any], str, Options]]] = {
    "a larger n asks for the rest, a smaller one for nothing": [
        (body(n=1), "miss a1 of a"),
        (body(n=3), "partial a1 a2 a3 of a, n=2"),
        (body(n=2), "hit a1 a2"),
        (body(), "hit a1"),
        (body(n=4), "partial a1 a2 a3 a4 of a, n=1"),
    ],
    "a list of one prompt has the samples of a prompt": [
        (body(), "miss a1"), (body(["a"]), "hit a1"),
    ],
    "a known prompt of a batch is not asked for": [
        (body("b"), "miss b1"),
        (body(["a", "b", "c"]), "partial a2 b1 c3 of ac"),
        (body(["c", "a"]), "hit c3 a2"),
    ],
    "prompts that lack different numbers are asked for as often": [
        (body("a", 2), "miss a1 a2"),
        (body("b", 1), "miss b3"),
        (body(["a", "b", "c"], 3), "partial a1 a2 a4 b3 b5 b6 c7 c8 c9 of abbccc, n=1"),
        (body(["c", "b"], 3), "hit c7 c8 c9 b3 b5 b6"),
    ],
    "a prompt that comes twice has two samples, which stay its first two": [
        (body(), "miss a1"),
        (body(["a", "a"]), "partial a1 a2"),
        (body(["a", "a"]), "hit a1 a2"),
        (body("a", 4), "partial a1 a2 a3 a4"),
        (body(["a", "a"]), "hit a1 a2"),
        (body("a", 2), "hit a1 a2"),
    ],
    "a refreshed sample replaces the first, and the others stay": [
        (body(n=5), "miss a1 a2 a3 a4 a5"),
        (body(), "miss a6", ANEW),
        (body(n=5), "hit a6 a2 a3 a4 a5"),
        (body(n=2), "miss a7 a8", {**ANEW, "now": 300.0}),
        (body(n=5), "hit a7 a8 a3 a4 a5"),
        (body(n=7), "miss a9 a10 a11 a12 a13 a14 a15", {**ANEW, "now": 300.0}),
        (body(n=7), "hit a9 a10 a11 a12 a13 a14 a15"),
    ],
    "a refresh works by a clock that was set back": [
        (body(), "miss a1", {"now": 900.0}),
        (body(), "miss a2", {"now": 100.0, "terms": REFRESH}),
        (body(), "hit a2"),
    ],
    "only the too old prompt of a batch is asked for": [
        (body("a"), "miss a1"),
        (body("b"), "miss b2", {"now": 200.0}),
        (body(["a", "b"]), "partial a3 b2 of a", OLD),
        (body(["a", "b"]), "hit a3 b2"),
    ],
    "a sample that is too old does not count, and is replaced": [
        (body(), "miss a1"),
        (body(), "hit a1"),
        (body(), "miss a2", {**OLD, "now": 200.0}),
        (body(), "hit a2", OLD),
        (body(), "hit a2", {"now": 300.0, "terms": seconds(200.0)}),
        (body(), "miss a3", NEW),
    ],
    "readonly gives what is there, and stores nothing": [
        (body(), "miss a1", READ),
        (body(), "miss a2"),
        (body(), "hit a2", READ),
        (body(n=2), "partial a2 a3", READ),
        (body(n=2), "partial a2 a4", READ),
    ],
    "readonly replaces nothing that is too old": [
        (body(), "miss a1"),
        (body(), "miss a2", {"now": 200.0, "terms": Terms(150.0, Reason.READONLY)}),
        (body(), "hit a1"),
    ],
    "an adapter that is loaded anew costs only the prompts that name it": [
        (LORA, "miss x1 y2"), (LORA, "hit x1 y2"), (LORA, "partial x3 y2 of x", {"raised": "a"}),
    ],
    "a cleared cache asks again": [
        (body(), "miss a1"), (body(), "hit a1"), (body(), "miss a2", {"clear": True}),
        (body(), "hit a2"),
    ],
}  # fmt: skip


@each("steps", SCENES.values(), SCENES)
def test_scenes(steps: list[Any]) -> None:
    """What one call after the other is answered, and what upstream is asked for."""
    setup = Setup()
    for step, (asked, told, *options) in enumerate(steps):
        more = dict(options[0]) if options else {}
        if more.pop("clear", False):
            setup.store.clear()
        if adapter := more.pop("raised", ""):
            epochs = Epochs()
            epochs.raise_adapter(adapter)
            setup.enter("", epochs)
        kind, texts = setup.texts(asked, **more)
        told, _, of = told.partition(" of ")
        assert f"{kind} {texts}" == told, step
        if of:
            text, _, n = of.partition(", n=")
            sent = setup.received[-1]
            assert "".join(sent["text"]) == text, step
            assert not n or sent["sampling_params"]["n"] == int(n), step
    assert len(setup.received) == sum("hit" not in told for _, told, *_ in steps)


def test_miss_is_untouched() -> None:
    """A call of which nothing is stored goes to upstream as it came, and its answer to the
    client."""
    setup = Setup()
    fetch = setup.fetch(b' {"text" : "a", "odd":1.0e0 }')
    assert fetch.body is None
    raw = b'{ "text":"x", "meta_info": {"finish_reason": {"type":"stop"}} }'
    done = setup.complete(fetch, raw)
    assert done == Done(200, None, None, 1)


@each("status", [201, 204, 400, 401, 404, 500, 503])
@each("partial", [False, True])
def test_other_statuses(status: int, partial: bool) -> None:
    """What is no 200 is passed on as it is, and not stored."""
    setup = Setup()
    if partial:
        setup.ask(body())
    done = setup.complete(setup.fetch(body(n=2)), [native("x"), native("y")], status)
    assert done == Done(status, None, Reason.STATUS)
    assert setup.store.samples == partial


@each(
    ("bad", "reason"),
    [
        (native("x", "abort"), Reason.ABORT),
        (native("x", None), Reason.UNFINISHED),
        (native("x", weight_versions=[{}, {}]), Reason.MIXED_WEIGHTS),
    ],
)
def test_answer_that_is_not_stored(bad: dict[str, Any], reason: Reason) -> None:
    """An answer that is cut or mixed is given to its client, and not stored."""
    setup = Setup()
    done = setup.complete(setup.fetch(body()), bad)
    assert done == Done(200, None, reason, 1)
    setup.complete(setup.fetch(body()), native("good"))
    done = setup.complete(setup.fetch(body(n=3)), [native("new"), bad])
    assert (done.status, done.reason) == (200, reason)
    assert [a["text"] for a in json.loads(done.body or b"")] == ["good", "new", "x"]
    assert setup.store.samples == 1


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


@each(("raw", "reason"), UNREADABLE)
def test_unreadable_answers(raw: bytes, reason: Reason) -> None:
    """What cannot be read is shown as it is to a client whose own call it answers; nothing of it is
    stored, or taken for a part of an answer."""
    setup = Setup()
    assert setup.complete(setup.fetch(body()), raw) == Done(200, None, reason)
    setup.ask(body())
    done = setup.complete(setup.fetch(body(n=2)), raw)
    assert (done.status, done.reason, done.generated) == (200, reason, 0)
    assert setup.store.samples == 1


@each("rid", ["r", "", "ü🚀", '"\\/\n', "x" * 300])
def test_client_rid_in_a_miss(rid: str) -> None:
    """A client finds its own id in its answer, and else the very bytes of upstream's."""
    setup = Setup()
    fetch = setup.fetch(body(rid=rid))
    sent = json.loads(fetch.body or b"")
    assert sent["rid"] != rid
    assert {**sent, "rid": rid} == body(rid=rid)
    raw = b'{ "text":"x" ,"n":1.0e0,\n "meta_info": {"id":"%s", "finish_reason":{"type":"stop"}}}'
    done = setup.complete(fetch, raw % sent["rid"].encode())
    assert done.body == raw % orjson.dumps(rid)[1:-1]
    assert json.loads(done.body)["meta_info"]["id"] == rid


def test_client_rids() -> None:
    """Each client finds its own ids, whoever has asked for the samples."""
    setup = Setup()
    assert setup.ask(body(rid="one"))[1]["meta_info"]["id"] == "one"
    assert setup.ask(body(rid="two"))[1]["meta_info"]["id"] == "two"
    assert setup.ask(body())[1]["meta_info"]["id"] not in ("one", "two")
    kind, answer = setup.ask(body(["b", "a", "c"], rid="x"))
    assert kind is Kind.PARTIAL
    assert [a["meta_info"]["id"] for a in answer] == ["x_0", "x_1", "x_2"]
    kind, answer = setup.ask(body(["a", "c"], rid=["p", "q"]))
    assert kind is Kind.HIT
    assert [(a["text"][0], a["meta_info"]["id"]) for a in answer] == [("a", "p"), ("c", "q")]
    kind, answer = setup.ask(body("a", 2, rid="y"))
    assert kind is Kind.PARTIAL
    assert "y" not in {a["meta_info"]["id"] for a in answer}


def test_trimmed_body_keeps_what_is_unknown() -> None:
    """A call that is trimmed keeps the fields that the proxy does not know."""
    setup = Setup()
    extra = {"bogus": {"b": 1, "a": [1.0, None, "ü"]}, "user": "u", "priority": 3}
    setup.ask(body(**extra))
    fetch = setup.fetch(body(n=3, **extra))
    assert json.loads(fetch.body or b"") == body(n=2, **extra)
    assert (fetch.body or b"").index(b'"b":1') < (fetch.body or b"").index(b'"a":[1.0')


USAGE = {"prompt_tokens": 4, "total_tokens": 6, "completion_tokens": 2}


@each("path", [GENERATE, COMPLETIONS, CHAT])
@each("n", [1, 2])
def test_odd_answers(path: str, n: int) -> None:
    """An odd answer is passed on as it is, and ends in no traceback."""
    setup = Setup()
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
        done = setup.complete(setup.fetch(fresh, path), shape)
        assert (done.body, done.status) == (None, 200)
        decision = setup.receive(fresh, path)
        assert isinstance(decision, Fetch if done.reason else Hit)


def test_refresh_with_a_seed() -> None:
    """Where a seed makes each sample a certain one, a top-up skips places that others have filled
    meanwhile, and a refresh fills them anew."""
    setup = Setup()
    setup.exchange.lookup.enter("m", Epochs(), Server(), 1)
    asked = {"prompt": "a", "seed": 1}
    fetches = [setup.fetch(asked, COMPLETIONS, terms=terms) for terms in (PLAIN, PLAIN, REFRESH)]
    for fetch, text in zip(fetches, ("first", "late", "new"), strict=True):
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        assert setup.complete(fetch, {"choices": [choice], "usage": USAGE}).reason is None
        assert setup.store.samples == 1
        hit = setup.find(asked, COMPLETIONS)
        assert isinstance(hit, Hit)
        assert json.loads(hit.body)["choices"][0]["text"] == text.replace("late", "first")


def test_denied_terms() -> None:
    """A client that wants no stored answer gets none; offline, what is stored is a hit."""
    setup = Setup()
    setup.ask(body())
    terms = Terms(inf, Reason.NO_STORE, Reason.ONLY_IF_CACHED)
    for again in (setup, Setup(setup.store)):
        assert isinstance(again.find(body(), terms=terms), Known)
    assert isinstance(setup.find(body(), terms=Terms(denial=Reason.OFFLINE)), Hit)


@each(
    ("answer", "reason"),
    [
        (native("x", "abort"), Reason.ABORT),
        (native("x", None), Reason.UNFINISHED),
        (b"<html>", Reason.UNREADABLE),
    ],
)
def test_readonly_is_not_the_first_reason(answer: Any, reason: Reason) -> None:
    """A broken answer is told as such, though nothing is to be stored anyway."""
    setup = Setup()
    fetch = setup.fetch(body(), terms=Terms(refusal=Reason.READONLY))
    assert setup.complete(fetch, answer).reason is reason


MEANWHILE: dict[str, tuple[Callable[[Setup], object], Reason | None]] = {
    "nothing": (lambda setup: None, None),
    "a clear": (lambda setup: setup.store.clear(), Reason.CLEARED),
    "another model": (lambda setup: setup.enter("m2"), Reason.MODEL_CHANGED),
    "the same model anew": (lambda setup: setup.enter("m"), Reason.MODEL_CHANGED),
    "a clear and another model": (
        lambda setup: (setup.store.clear(), setup.enter("m2")),
        Reason.CLEARED,
    ),
    "a sample of another pool replaced": (
        lambda setup: (setup.ask(body("b"), now=50.0), setup.ask(body("b"), terms=REFRESH)),
        None,
    ),
}


@each(("change", "reason"), MEANWHILE.values(), ids=MEANWHILE)
def test_what_happens_meanwhile(change: Callable[[Setup], object], reason: Reason | None) -> None:
    """What was on its way when the cache was cleared, or when another model may have come, is not
    stored, whether the fetch had begun by then or was only planned."""
    for is_begun in (True, False):
        setup = Setup(fingerprint="m")
        known = setup.know(body())
        plan = setup.exchange.lookup.plan(known)
        if not is_begun:
            change(setup)
        fetch = setup.exchange.fetch(known, plan)
        if is_begun:
            change(setup)
        elif reason is Reason.CLEARED:
            continue  # what is planned after a clear is of after it
        before = setup.store.samples
        assert setup.complete(fetch, native("x")) == Done(200, None, reason, 1)
        assert setup.store.samples == before + (reason is None)
        is_present = setup.exchange.lookup.is_present(known)
        assert is_present is (reason is not Reason.MODEL_CHANGED and setup.model_version == 0)
        setup.enter("m")
        assert isinstance(setup.find(body()), Hit if reason is None else Known)


@each(
    ("weights", "named", "reason"),
    [
        ("v1", ["v1", "v1"], None), ("v1", ["v1", None], None), ("v1", [None, None], None),
        (None, ["v1", "v1"], None), (None, ["v1", None], None), ("", ["", ""], None),
        ("v1", ["v2", "v2"], Reason.OTHER_WEIGHTS), ("v1", ["v2", None], Reason.OTHER_WEIGHTS),
        ("", ["v1", "v1"], Reason.OTHER_WEIGHTS), ("v1", ["v1", "v2"], Reason.MIXED_WEIGHTS),
        ("v1", ["v2", "v3"], Reason.MIXED_WEIGHTS), (None, ["v1", "v2"], Reason.MIXED_WEIGHTS),
    ],
)  # fmt: skip
def test_weights(weights: str | None, named: list[str | None], reason: Reason | None) -> None:
    """An answer is stored only under the weights that its key stands for."""
    setup = Setup()
    setup.enter("m", weights=weights)
    done = setup.complete(setup.fetch(body(n=2)), versions(*named))
    assert done == Done(200, None, reason, 2)
    assert setup.store.samples == (0 if reason else 2)


@each(
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
    """What others fetch is not fetched, and a part is told from the whole answer."""
    setup = Setup()
    for prompt in stored:
        setup.ask(body(prompt))

    def keys_of(prompts: str) -> set[bytes]:
        return {key_of(prompt) for prompt in prompts}

    known = setup.know(body(text, n))
    fetch = setup.exchange.fetch(known, setup.exchange.lookup.plan(known), PLAIN, keys_of(busy))
    asked = body(text, n) if fetch.body is None else json.loads(fetch.body)
    assert asked["text"] == sent
    assert fetch.keys == keys_of(filled)
    assert fetch.is_whole is is_whole


def test_again_keeps_to_the_terms() -> None:
    """Who wants a fresh answer, and waits for one, is not given an old one in the end."""
    setup = Setup()
    setup.ask(body(), now=100.0)
    known = setup.know(body(), terms=seconds(150.0))
    plan = setup.exchange.lookup.plan(known, seconds(150.0))
    assert setup.exchange.lookup.again(plan, seconds(150.0)).needs
    assert not setup.exchange.lookup.again(plan).needs


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


@each(("fields", "is_like"), LIKE.values(), ids=LIKE)
def test_likeness(fields: dict[str, Any], is_like: bool) -> None:
    """Only calls that have the same stream, but for usage and ids, are alike."""
    setup = Setup()
    asked = {"prompt": "a", "stream": True}
    one, other = (setup.know(call, COMPLETIONS) for call in (asked, {**asked, **fields}))
    assert (setup.exchange.likeness(one) == setup.exchange.likeness(other)) is is_like


def test_likeness_ends() -> None:
    """A clear, another model and another tenant end a likeness."""
    setup = Setup()
    asked = body(stream=True)
    seen = {setup.exchange.likeness(setup.know(asked))}
    seen.add(setup.exchange.likeness(setup.know(asked, tenant=ANN)))
    setup.store.clear()
    seen.add(setup.exchange.likeness(setup.know(asked)))
    setup.enter("")
    seen.add(setup.exchange.likeness(setup.know(asked)))
    assert len(seen) == 4


def test_stream_to_the_store() -> None:
    """A stream that is stored is a hit for clients of streams and of JSON."""
    setup = Setup()
    assert streamed(setup, setup.fetch(chats.ONE, CHAT), chats.GOOD) == (None, 1)
    hit = setup.receive(chats.ONE, CHAT)
    assert isinstance(hit, Hit)
    assert hit.is_stream
    assert hit.longest == hit.saved.tokens > 0
    whole = setup.receive({**chats.ONE, "stream": False}, CHAT)
    assert isinstance(whole, Hit)
    assert not whole.is_stream
    assert hit.outcome.key == whole.outcome.key


def test_stream_that_is_not_stored() -> None:
    """What is not to be stored is not, if it comes as a stream, either."""
    setup = Setup()
    setup.enter("m", weights="v1")
    assert streamed(setup, setup.fetch(chats.ONE, CHAT), chats.GOOD[:-2]) == (Reason.UNFINISHED, 0)
    fetch = setup.fetch(chats.ONE, CHAT, terms=Terms(refusal=Reason.READONLY))
    assert streamed(setup, fetch, chats.GOOD) == (Reason.READONLY, 0)
    for name, reason in {"v1": None, "v2": Reason.OTHER_WEIGHTS}.items():
        events = natives.stream([("s", 1)])
        for event in events:
            event["meta_info"]["weight_version"] = name
        found = streamed(setup, setup.fetch({**natives.ONE, "text": name}), events)
        assert found[0] is reason
    fetch = setup.fetch(chats.ONE, CHAT)
    setup.enter("m", weights="v1")
    assert streamed(setup, fetch, chats.GOOD)[0] is Reason.MODEL_CHANGED
    assert setup.store.samples == 1


def test_document_instead_of_a_stream() -> None:
    """JSON is passed on to a stream's client as it is, but for the ids."""
    setup = Setup()
    whole = setup.exchange.land(setup.fetch(chats.ONE, CHAT), 200, BytesIO(b"{}"))
    assert whole == Landed(200, b"{}", refusal=Reason.UNREADABLE)

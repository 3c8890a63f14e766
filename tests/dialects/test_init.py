"""The registry of dialects."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import Call, Generation, Part
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects import chat, completions, generate, installed, registry
from sglang_cached_addon.dialects.base import Generating
from tests.dialects import test_chat_stream as chats
from tests.dialects import test_completions_stream as texts
from tests.dialects import test_generate_stream as natives
from tests.dialects.streams import parsed
from tests.tables import each

OURS = (chat.DIALECT, completions.DIALECT, generate.DIALECT)


def test_installed() -> None:
    """Each documented route has its dialect, and no other route has one."""
    assert {route: dialect.name for route, dialect in installed().items()} == {
        ("POST", "/generate"): "sglang-generate",
        ("PUT", "/generate"): "sglang-generate",
        ("POST", "/v1/completions"): "openai-completion",
        ("POST", "/v1/chat/completions"): "openai-chat",
        ("POST", "/v1/embeddings"): "openai-embedding",
        ("POST", "/v1/classify"): "openai-classify",
        ("POST", "/v1/score"): "sglang-score",
        ("POST", "/v1/rerank"): "sglang-rerank",
        ("PUT", "/v1/rerank"): "sglang-rerank",
        ("POST", "/v1/decisions"): "sglang-decisions",
        ("POST", "/v1/systemone"): "sglang-systemone",
        ("POST", "/encode"): "sglang-encode",
        ("PUT", "/encode"): "sglang-encode",
        ("POST", "/classify"): "sglang-encode",
        ("PUT", "/classify"): "sglang-encode",
        ("POST", "/v1/tokenize"): "sglang-tokenize",
        ("POST", "/tokenize"): "sglang-tokenize",
        ("POST", "/v1/detokenize"): "sglang-detokenize",
        ("POST", "/detokenize"): "sglang-detokenize",
        ("POST", "/v1/messages"): "anthropic-messages",
        ("POST", "/v1/messages?beta=true"): "anthropic-messages",
        ("POST", "/v1/responses"): "openai-responses",
        ("POST", "/v1/messages/count_tokens"): "anthropic-count-tokens",
        ("POST", "/v1/messages/count_tokens?beta=true"): "anthropic-count-tokens",
    }


def test_registry() -> None:
    """A dialect of a third party is found like ours; two for one route are refused."""

    class Other(type(chat.DIALECT)):
        name = "other"
        routes = (("POST", "/other"),)

    routes = registry([*OURS, Other()])
    assert routes["POST", "/other"].name == "other"
    assert len(routes) == 5
    for dialect in OURS:

        class Rival(type(dialect)):
            name = "rival"

        with pytest.raises(ValueError, match=f"{dialect.routes[0][1]}.*{dialect.name} and rival"):
            registry([dialect, Rival()])


ABORTS: dict[str, tuple[Generating, dict[str, Any]]] = {
    "chat": (chat.DIALECT, {**chats.ONE, "model": "m"}),
    "chat, n": (chat.DIALECT, chats.TWO),
    "chat, rid": (chat.DIALECT, {**chats.ONE, "rid": "mine"}),
    "completions": (completions.DIALECT, {**texts.ONE, "model": "m"}),
    "completions, list": (completions.DIALECT, {"prompt": ["a", "b"], "n": 2, "stream": True}),
    "completions, rids": (
        completions.DIALECT,
        {"prompt": ["a", "b"], "rid": ["x", "y"], "stream": True},
    ),
    "generate": (generate.DIALECT, natives.ONE),
    "generate, n": (generate.DIALECT, natives.TWO),
    "generate, list": (generate.DIALECT, natives.BATCH),
    "generate, rid": (generate.DIALECT, {**natives.ONE, "rid": "mine"}),
}


def aborted(dialect: Generating, call: Call) -> list[list[Generation]]:
    """As many samples as a call wants, none of which has begun."""
    answer = dialect.aborted(call, "minted", 1234.5)
    return [[Generation(i, answer, 0)] * call.n for i in range(len(call.items))]


@each(("dialect", "body"), ABORTS.values(), ids=ABORTS)
def test_aborted(dialect: Generating, body: dict[str, Any]) -> None:
    """The answer to an aborted call looks like SGLang's own, and is not stored."""
    call = dialect.read({**body, "stream": False})
    one = dialect.read({n: v for n, v in body.items() if n not in ("n", "sampling_params", "rid")})
    if len(call.items) == 1:
        sent = dialect.trim(one, [1], lambda: "x")
        lone = dialect.split(one, sent, orjson.loads(dialect.aborted(one, "minted", 1234.5)))
        assert (lone.refusal, lone.versions) == (Reason.ABORT, set())
        assert [generation.tokens for generation in lone.generations] == [0]
    pools = [[sample.answer for sample in pool] for pool in aborted(dialect, call)]
    whole = orjson.loads(dialect.write(call, pools))
    sent = dialect.trim(call, [call.n] * len(call.items), lambda: "x")
    split = dialect.split(call, sent, whole)
    assert split.refusal is Reason.ABORT
    assert len(split.generations) == call.total


@each(("dialect", "body"), ABORTS.values(), ids=ABORTS)
def test_aborted_script(dialect: Generating, body: dict[str, Any]) -> None:
    """As above, of a stream; it has the client's own id, the time and the model."""
    call = dialect.read(body)
    samples = aborted(dialect, call)
    script = dialect.script(call, samples)
    events = [*script.in_turn(), *script.finishes]
    usage = dialect.usage(call, samples)
    # A recorder of the whole answer understands it, as it does upstream's.
    numbers = itertools.count()
    sent = dialect.trim(call, [call.n] * len(call.items), lambda: f"x{next(numbers)}")
    recorder = dialect.record(call, sent)
    said = [parsed(event) for event in events]
    assert {event.get("id") or event["meta_info"]["id"] for event in said} == (
        set(call.rids) or {"minted"}
    )
    if dialect is not generate.DIALECT:
        times = {(event["created"], event["model"]) for event in said}
        assert times == {(1234, body.get("model", "default"))}
    parts = [recorder.add(event)[0] for event in [*said, *([parsed(usage)] if usage else [])]]
    assert Part.ERROR not in parts
    split = recorder.split()
    assert split.refusal is Reason.ABORT
    assert len(split.generations) == call.total
    assert sum(generation.tokens for generation in split.generations) == 0


@each("index", [None, 0, 1])
def test_cut(index: int | None) -> None:
    """A stream that is cut off ends with an abort, and keeps what it had."""
    for event in natives.stream([("a", 1), ("ab", 2), ("abc", 3)], index=index)[:2]:
        text = event["text"]
        before = {n: v for n, v in event["meta_info"].items() if n != "finish_reason"}
        generate.DIALECT.cut(event)
        assert event["text"] == text
        assert event["meta_info"].pop("finish_reason")["type"] == "abort"
        assert event["meta_info"] == before


@each("route", sorted(installed()))
def test_probes_name_the_model(route: tuple[str, str]) -> None:
    """A probe asks for what the call asks: a key may be for some models only."""
    dialect = installed()[route]
    assert {body.get("model") for body in dialect.probes("m")} == {"m"}
    assert all("model" not in body for body in dialect.probes(""))

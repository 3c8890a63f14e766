"""Epochs of models and adapters."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.epochs import SPAN, Epochs, adapters
from sglang_cached_addon.core.identity import Identity
from tests.tables import each


@each(
    ("call", "names"),
    [
        ({"text": "x"}, set()),
        ({"lora_path": "a"}, {"a"}),
        ({"lora_path": ["a", None, "b", 3]}, {"a", "b"}),
        ({"lora_path": None}, set()),
        ({"lora_path": ""}, set()),
        ({"model": "base:a"}, {"a"}),
        ({"model": "base: a "}, {"a"}),
        ({"model": "base:a", "lora_path": "b"}, {"a", "b"}),
        ({"model": "base:a:b"}, {"a:b"}),
        ({"model": "s3://host:9000/base:a"}, {"a"}),
        ({"model": "a"}, {"a"}),
        ({"model": "base:"}, set()),
        ({"model": None}, set()),
        ({"model": 3}, set()),
    ],
)
def test_adapters_of_a_call(call: dict[str, Any], names: set[str]) -> None:
    """Every adapter that a call may select is found."""
    assert names <= adapters(orjson.dumps(call))


@each("content", [b'{"text":"\\"lora_path\\""}', b'["model"]', b'{"prompt":"a:b"}', b"{}"])
def test_calls_without_adapters(content: bytes) -> None:
    """Text of a prompt is no adapter."""
    assert adapters(content) == set()


def test_a_model_of_colons() -> None:
    """A name with many colons has a bounded number of readings."""
    assert len(adapters(orjson.dumps({"model": ":a" * 100_000}))) < 20


# Epochs

X, Y, Z = (Identity(letter * 32, letter, None, "") for letter in "xyz")


def test_changes_of_models() -> None:
    """A fingerprint is of digest and epoch alone; a changed model has a new one, others keep
    theirs, and a change of an unknown model is one of all."""
    epochs = Epochs()
    assert (epochs.of(X.digest), epochs.adapters_token) == (0, "")
    assert re.fullmatch("[0-9a-f]{32}", epochs.fingerprint(X))
    same = Identity(X.digest, "other", "v", "another process")
    assert epochs.fingerprint(same) == epochs.fingerprint(X) == Epochs().fingerprint(X) != X.digest
    others, seen = epochs.fingerprint(Y), {epochs.fingerprint(X), epochs.fingerprint(Y)}
    for _ in range(3):
        epochs.raise_model(X.digest)
        seen.add(epochs.fingerprint(X))
    assert epochs.fingerprint(Y) == others
    assert (epochs.of(X.digest), epochs.of(Y.digest), epochs.last) == (3, 0, 3)
    epochs.raise_model(None)
    seen |= {epochs.fingerprint(who) for who in (X, Y, Z)}
    assert len(seen) == 5 + 3
    epochs.raise_model(X.digest)
    assert (epochs.of(X.digest), epochs.of(Y.digest)) == (5, 4)
    assert epochs.models.keys() == {X.digest}


def test_changes_of_adapters() -> None:
    """A change of an adapter leaves models and other adapters alone; the order and number of names
    do not matter."""
    epochs = Epochs()
    before, tokens = epochs.fingerprint(X), set[str]()
    for name in ("b", "a", 'a","b', "a"):
        epochs.raise_adapter(name)
        assert epochs.adapters_token == epochs.adapter_epochs(epochs.adapters)
        tokens |= {epochs.adapters_token, epochs.adapter_epochs([name])}
    assert epochs.fingerprint(X) == before
    assert len(tokens) == 1 + 3 * 2  # the first one is all
    assert epochs.adapter_epochs({"c"}) == epochs.adapter_epochs([]) == ""
    assert epochs.adapter_epochs(["a", "b"]) == epochs.adapter_epochs(["b", "a", "b", "c"])
    assert epochs.adapter_epochs(["a", "b"]) != epochs.adapter_epochs(['a","b'])


@each(
    ("changed", "after", "are_new"),
    [
        ([], X, []),
        ([X], X, [X]),
        # Y was never changed, so what is stored of it was given by the weights that it has.
        ([X], Y, []),
        ([Y], Y, [Y]),
        ([X, Y], Y, [Y]),
        ([None], X, [X]),
    ],
)
def test_restarts(changed: list[Identity | None], after: Identity, are_new: list[Identity]) -> None:
    """After a restart, what was never changed keeps its epoch; each model, and each adapter, that
    was has a new one."""
    for has_adapter in (False, True):
        epochs = Epochs()
        for who in changed:
            epochs.raise_model(who and who.digest)
        if has_adapter:
            epochs.raise_adapter("a")
        models, adapters = [epochs.fingerprint(who) for who in (X, Y, Z)], epochs.adapters_token
        last = epochs.last
        epochs.restarted(after)
        found = zip((X, Y, Z), models, strict=True)
        assert [who for who, former in found if epochs.fingerprint(who) != former] == are_new
        assert (epochs.adapters_token != adapters) is has_adapter
        assert (epochs.last > last) is bool(are_new or has_adapter)


def full() -> Epochs:
    epochs = Epochs()
    epochs.raise_model(X.digest)
    epochs.raise_model(None)
    epochs.raise_model(Y.digest)
    epochs.raise_adapter("a")
    return epochs


def test_numbers_of_ones_own() -> None:
    """Proxies that share their epochs never give the same number."""
    one, two = Epochs(salt=3), Epochs(salt=4)
    for epochs in (one, two):
        epochs.raise_model("x")
    assert (one.of("x"), two.of("x")) == (SPAN + 3, SPAN + 4)
    one.raise_model("x")
    assert one.of("x") == 2 * SPAN + 3
    assert Epochs.from_json(one.as_json()).of("x") == one.of("x")


KNOWN = {"last": 5, "floor": 1, "m:x": 4, "a:a": 5}


@each(
    ("mine", "theirs", "merged"),
    [
        (KNOWN, KNOWN, KNOWN),
        ({}, KNOWN, KNOWN),
        (KNOWN, {**KNOWN, "m:x": 9, "last": 9}, {**KNOWN, "m:x": 9, "last": 9}),
        (KNOWN, {"last": 5, "floor": 1, "a:a": 5}, {"last": 5, "floor": 1, "a:a": 5}),
        ({**KNOWN, "m:x": 7, "last": 7}, {**KNOWN, "m:x": 9, "last": 9},
         {**KNOWN, "m:x": 9, "last": 9}),
        ({**KNOWN, "m:x": 9, "last": 9}, {**KNOWN, "m:x": 7, "last": 7},
         {**KNOWN, "m:x": 9, "last": 9}),
        ({**KNOWN, "m:y": 6, "last": 6}, {**KNOWN, "a:b": 7, "last": 7},
         {**KNOWN, "m:y": 6, "a:b": 7, "last": 7}),
        # Where nothing is left of what they knew.
        (KNOWN, {}, {"last": 5}),
    ],
)  # fmt: skip
def test_merge(mine: dict[str, int], theirs: dict[str, int], merged: dict[str, int]) -> None:
    """Changes of two proxies are both kept, and the higher number counts."""
    epochs = Epochs()
    epochs.merge({}, mine)
    assert epochs.merge(KNOWN if mine else {}, theirs) is (mine != merged)
    assert epochs.as_numbers() == merged
    assert Epochs.from_json(epochs.as_json()) == epochs


@each("epochs", [Epochs(), full()], ids=["empty", "full"])
def test_epochs_are_kept(epochs: Epochs) -> None:
    """Epochs are the same after they were written and read; what was written does not change."""
    kept = epochs.as_json()
    again = Epochs.from_json(orjson.loads(orjson.dumps(kept)))
    assert again == epochs == Epochs.from_json({**kept, "of a later version": 1})
    assert again.adapters_token == epochs.adapters_token
    before, read = repr(kept), Epochs.from_json(kept)
    for one in (read, epochs):
        one.raise_adapter("b")
        one.raise_model("b")
    assert repr(kept) == before


GOOD: dict[str, Any] = {"last": 3, "floor": 1, "models": {"x": 2}, "adapters": {"a": 3}}


@each(
    "value",
    [
        None, [], "epochs", {}, *({k: v for k, v in GOOD.items() if k != name} for name in GOOD),
        {**GOOD, "last": -1}, {**GOOD, "floor": True}, {**GOOD, "last": 3.0}, {**GOOD, "last": "3"},
        {**GOOD, "last": 2}, {**GOOD, "floor": 4}, {**GOOD, "floor": None}, {**GOOD, "models": []},
        {**GOOD, "models": {"x": "1"}}, {**GOOD, "models": {"x": -1}}, {**GOOD, "models": {"x": 4}},
        {**GOOD, "adapters": None}, {**GOOD, "adapters": {"a": None}},
        {**GOOD, "adapters": {"a": 4}},
    ],
)  # fmt: skip
def test_broken_epochs_are_refused(value: Any) -> None:
    """Epochs that make no sense are refused, with a reason."""
    with pytest.raises(ValueError, match=r"^epochs: "):
        Epochs.from_json(value)

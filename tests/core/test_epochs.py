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


def test_nothing_has_changed() -> None:
    """Before any change, all models have epoch 0."""
    epochs = Epochs()
    assert epochs.of(X.digest) == 0
    assert epochs.adapters_token == epochs.adapter_epochs(["a"]) == ""
    assert re.fullmatch("[0-9a-f]{32}", epochs.fingerprint(X))
    assert len({X.digest, epochs.fingerprint(X), epochs.fingerprint(Y)}) == 3
    assert epochs.fingerprint(X) == Epochs().fingerprint(X)


def test_a_fingerprint_is_of_digest_and_epoch() -> None:
    """A fingerprint depends on digest and epoch only."""
    epochs = Epochs()
    same = Identity(X.digest, "other", "v", "another process")
    assert epochs.fingerprint(X) == epochs.fingerprint(same)


def test_a_changed_model_is_another_one() -> None:
    """A changed model has a new fingerprint; other models keep theirs."""
    epochs = Epochs()
    seen = {epochs.fingerprint(X)}
    others = epochs.fingerprint(Y)
    for _ in range(3):
        epochs.raise_model(X.digest)
        seen.add(epochs.fingerprint(X))
    assert len(seen) == 4
    assert epochs.fingerprint(Y) == others
    assert (epochs.of(X.digest), epochs.of(Y.digest), epochs.last) == (3, 0, 3)


def test_a_change_of_an_unknown_model_is_one_of_all() -> None:
    """A change of an unknown model is a change of all models."""
    epochs = Epochs()
    epochs.raise_model(X.digest)
    before = {epochs.fingerprint(who) for who in (X, Y, Z)}
    epochs.raise_model(None)
    assert not before & {epochs.fingerprint(who) for who in (X, Y, Z)}
    epochs.raise_model(X.digest)
    assert (epochs.of(X.digest), epochs.of(Y.digest)) == (3, 2)
    assert epochs.models.keys() == {X.digest}


def test_adapters_are_apart_from_models() -> None:
    """A change of an adapter leaves the models alone."""
    epochs = Epochs()
    before = epochs.fingerprint(X)
    epochs.raise_adapter("a")
    first, all_first = epochs.adapter_epochs({"a", "b"}), epochs.adapters_token
    epochs.raise_adapter("a")
    assert epochs.fingerprint(X) == before
    assert first and first != epochs.adapter_epochs({"a", "b"})
    assert all_first and all_first != epochs.adapters_token
    assert epochs.adapter_epochs({"b"}) == ""
    assert epochs.adapter_epochs([]) == ""


def test_adapter_epochs_are_a_set() -> None:
    """The order and number of names do not matter."""
    epochs = Epochs()
    for name in ("b", "a", 'a","b'):
        epochs.raise_adapter(name)
    assert epochs.adapter_epochs(["a", "b"]) == epochs.adapter_epochs(["b", "a", "b", "c"])
    assert epochs.adapter_epochs(["a", "b"]) != epochs.adapter_epochs(['a","b'])
    assert epochs.adapters_token == epochs.adapter_epochs(epochs.adapters)


@each(
    ("changed", "after", "are_new", "are_kept"),
    [
        ([], X, [], [X, Y, Z]),
        ([X], X, [X], [Y, Z]),
        # Y was never changed, so what is stored of it was given by the weights that it has.
        ([X], Y, [], [X, Y, Z]),
        ([Y], Y, [Y], [X, Z]),
        ([X, Y], Y, [Y], [X, Z]),
    ],
)
def test_restarts(
    changed: list[Identity],
    after: Identity,
    are_new: list[Identity],
    are_kept: list[Identity],
) -> None:
    """After a restart, what was never changed keeps its epoch, and all else has a new one."""
    epochs = Epochs()
    for who in changed:
        epochs.raise_model(who.digest)
    former = {who: epochs.fingerprint(who) for who in (X, Y, Z)}
    epochs.restarted(after)
    assert [who for who in (X, Y, Z) if epochs.fingerprint(who) != former[who]] == are_new
    assert [who for who in (X, Y, Z) if epochs.fingerprint(who) == former[who]] == are_kept


def test_a_restart_after_a_change_of_all() -> None:
    """A restart after a change of all models gives a new epoch."""
    epochs = Epochs()
    epochs.raise_model(None)
    before = epochs.fingerprint(X)
    epochs.restarted(X)
    assert epochs.fingerprint(X) != before


def test_a_restart_forgets_no_adapter() -> None:
    """A restart gives each changed adapter a new epoch."""
    epochs = Epochs()
    epochs.raise_adapter("a")
    before = epochs.adapter_epochs("a"), epochs.adapters_token, epochs.fingerprint(X)
    epochs.restarted(X)
    assert epochs.adapter_epochs("a") not in ("", before[0])
    assert epochs.adapters_token != before[1]
    assert epochs.fingerprint(X) == before[2]


def test_a_restart_of_what_never_changed_is_nothing() -> None:
    """A restart changes nothing where nothing was changed before."""
    epochs = Epochs()
    epochs.restarted(Y)
    assert epochs == Epochs()


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
    """Epochs are the same after they were written and read."""
    again = Epochs.from_json(orjson.loads(orjson.dumps(epochs.as_json())))
    assert again == epochs
    for who in (X, Y, Z):
        assert again.fingerprint(who) == epochs.fingerprint(who)
    assert again.adapters_token == epochs.adapters_token


def test_what_was_kept_does_not_follow() -> None:
    """What was given to be written does not change later."""
    epochs = full()
    kept = epochs.as_json()
    again = Epochs.from_json(kept)
    again.raise_adapter("b")
    epochs.raise_model("b")
    assert kept == full().as_json()


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


def test_epochs_of_a_later_version() -> None:
    """Unknown members of a later version are left out."""
    assert Epochs.from_json({**GOOD, "new": 1}) == Epochs(3, 1, {"x": 2}, {"a": 3})

"""What rules cut out of bodies, and what is left of them."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import orjson

from sglang_cached_addon.core import ignore_rules
from sglang_cached_addon.core.ignoring import NOTHING, Ignoring, LeftOut, Rule
from tests.tables import each


def ignoring(*rules: str, late: Callable[[Rule], object] = print) -> Ignoring:
    return Ignoring(ignore_rules.of_option("\n".join(rules)), lambda: 0.0, late)


def name(rules: Ignoring, body: dict[str, Any]) -> tuple[bytes, LeftOut]:
    """What a body is named by."""
    before = orjson.dumps(body)
    reduction = rules.reduce("api", body, [before])
    if reduction is None:
        return before, NOTHING
    assert orjson.dumps(body) == before  # it is the client's, and stays as it is
    return reduction.read(orjson.dumps(reduction.body))


DIGITS = ignoring(r"text=\d+", r"list[*]=\d+", "all.**=x")


@each(
    ("body", "other", "is_same"),
    [
        ({"text": "day 1"}, {"text": "day 23"}, True),
        ({"text": "day 1"}, {"text": "day"}, False),
        ({"text": "day 1"}, {"text": "day 1 "}, False),
        ({"text": "a1bc"}, {"text": "ab1c"}, False),
        ({"text": "1 2"}, {"text": "1 2 3"}, False),
        ({"text": "12"}, {"text": "3"}, True),
        ({"text": "1"}, {"list": ["1"]}, False),
        ({"list": ["1", "a"]}, {"list": ["a", "1"]}, False),
        ({"list": ["1", "a"]}, {"list": ["2", "a"]}, True),
        ({"list": [["1"]]}, {"list": [["2"]]}, False),
        ({"text": "1", "x": "1"}, {"text": "2", "x": "2"}, False),
        ({"all": {"x": "x"}}, {"all": {"y": "x"}}, False),
        ({"all": ["xx", "x"]}, {"all": ["x", "xxx"]}, True),
        # What a client writes is never taken for a mark.
        ({"text": "a1"}, {"text": "a\u2026064589cfbf52ce5a"}, False),
        ({"text": "a1"}, {"text": "a\\u2026064589cfbf52ce5a"}, False),
        ({"text": "\ufdd00\ufdd01"}, {"text": "\ufdd00\ufdd02"}, True),
        ({"text": "\ufdd00\ufdd0"}, {"text": "\ufdd0\ufdd00"}, False),
    ],
)
def test_what_is_joined(body: dict[str, Any], other: dict[str, Any], is_same: bool) -> None:
    """Two bodies have one name if they are equal but for what is matched, and else not."""
    assert (name(DIGITS, body)[0] == name(DIGITS, other)[0]) is is_same
    if is_same:  # ... and by what is left out, each is told from the other
        assert name(DIGITS, body)[1] != name(DIGITS, other)[1]


def test_what_is_left_out_is_told() -> None:
    """Of each item the rules that act on it are named, and what they leave out."""
    rules = ignoring("a=1", "b=1", "claude-code")
    content, left_out = name(rules, {"a": "x1", "b": "y"})
    assert left_out.rules == ("rule-1",)
    assert orjson.loads(content)["a"].startswith("x\u2026")
    assert name(rules, {"a": "x1", "b": "1"})[1].rules == ("rule-1", "rule-2")
    assert name(rules, {"a": "x", "c": "1"}) == (b'{"a":"x","c":"1"}', NOTHING)
    assert name(rules, {"a": "1"})[1].origin == name(rules, {"a": "z 1"})[1].origin


def test_rules_that_touch() -> None:
    """What several rules match at one place is one cut, and the name says by which expressions."""
    one, other = ignoring("t=ab", "t=bc"), ignoring("t=bc", "t=ab")
    assert name(one, {"t": "xabcx"})[1].rules == ("rule-1", "rule-2")
    both = ignoring("t=abc")
    names = {name(rules, {"t": "xabcx"})[0] for rules in (one, other, both)}
    assert len(names) == 3  # another rule leaves out something else
    same = ignoring("u=q", "**=abc")
    assert name(same, {"t": "xabcx"})[0] == name(both, {"t": "xabcx"})[0]


def test_what_keeps_calls_apart() -> None:
    """No path leads to what chooses the model, or to what gives somebody a cache of their own."""
    rules = ignoring(r"**=\d+")
    for field in ("model", "lora_path", "lora_id", "cache_salt", "extra_key"):
        body = {field: "m1", "text": "t1"}
        assert name(rules, body)[0] == name(rules, {**body, "text": "t2"})[0]
        assert name(rules, body)[0] != name(rules, {**body, field: "m2"})[0]
    assert name(rules, {"lora_path": ["a1"]}) == (b'{"lora_path":["a1"]}', NOTHING)


@each(
    ("field", "value", "is_asked"),
    [("echo", True, True), ("echo", False, False), ("echo", None, False),
     ("logprob_start_len", 0, True), ("logprob_start_len", -1, False),
     ("logprob_start_len", [-1], True), ("prompt_logprobs", 0, True),
     ("return_hidden_states", True, True), ("logprobs", 5, False)],
)  # fmt: skip
def test_what_shows_the_prompt(field: str, value: Any, is_asked: bool) -> None:
    """Nothing is left out of a call whose answer shows its prompt."""
    assert (DIGITS.reduce("api", {"text": "1", field: value}, []) is None) is is_asked


def test_apis() -> None:
    """A rule may be for some APIs alone."""
    document = {"r": {"path": "text", "regex": "1", "apis": ["api"]}}
    rules = Ignoring(ignore_rules.of_file(document, ["api", "b"]), lambda: 0.0, print)
    assert rules.reduce("api", {"text": "1"}, [])
    assert rules.reduce("b", {"text": "1"}, []) is None


def test_what_takes_too_long() -> None:
    """Where time is up, nothing at all is left out, and that is told."""
    told: list[Rule] = []
    times = itertools.count(0.0, 0.03)
    rules = Ignoring(ignore_rules.of_option(r"t=\d"), lambda: next(times), told.append)
    assert rules.reduce("api", {"t": "1"}, [])
    assert rules.reduce("api", {"t": "1 2 3 4 5 6"}, []) is None
    assert [rule.name for rule in told] == ["rule-1"]


def test_no_token_is_left() -> None:
    """A text with all characters that could stand for what is cut out keeps its name."""
    every = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    assert name(DIGITS, {"text": f"1{every}"})[1] is NOTHING
    assert name(DIGITS, {"text": f"1{every[1:]}"})[1] is not NOTHING


def test_bodies_at_random() -> None:
    """A rule never joins two bodies that differ outside of what it matches."""
    draw = random.Random(5)
    letters = ["1", "2", "a", "\u2026", "\\", '"', "\ufdd0", "é", "\n", "0"]

    def text() -> str:
        return "".join(draw.choices(letters, k=draw.randrange(6)))

    seen: dict[bytes, Any] = {}
    joined = 0
    for _ in range(5000):
        body = {"text": text(), "list": [text() for _ in range(draw.randrange(3))], "x": text()}
        # Another way to say what must be the same: each match becomes a byte that is no text.
        cut = [re.sub("[12]+", "\x00", one) for one in (body["text"], *body["list"])]
        outside = (cut, body["x"])
        key = name(ignoring(r"text=[12]+", r"list[*]=[12]+"), body)[0]
        joined += key in seen
        assert seen.setdefault(key, outside) == outside
    assert joined > 100

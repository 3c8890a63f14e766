"""Calls as rules have them: their keys, and what is said of their answers."""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any

from sglang_cached_addon.core import ignore_rules
from sglang_cached_addon.core.ignoring import Ignoring
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.service.findings import Hit
from sglang_cached_addon.store.memory import MemoryStore
from tests.service.exchanging import CHAT, COMPLETIONS, Setup, body, key_of
from tests.tables import each

RULES = ("text=\\d+", "text[*]=\\d+", "prompt[*]=\\d+")


def ruled(*rules: str, store: MemoryStore | None = None) -> Setup:
    ignoring = Ignoring(ignore_rules.of_option("\n".join(rules or RULES)), lambda: 0.0, print)
    return Setup(store, ignoring=ignoring)


def detail(setup: Setup, body: dict[str, Any], **kwargs: Any) -> str:
    """What is said of a hit."""
    found = setup.receive(body, **kwargs)
    assert isinstance(found, Hit)
    return found.outcome.detail


def test_keys_without_a_match() -> None:
    """A call in which no rule matches anything has the key that it has without rules; one in which
    one does has no key that a call without rules may have."""
    setup = ruled()
    assert setup.know(body("a")).keys == (key_of("a"),)
    assert setup.know(body("a1")).keys != (key_of("a1"),)
    assert setup.know(body("a1")).keys == setup.know(body("a22")).keys
    first, second, third = setup.know(body(["a", "a1", "a2"])).keys
    assert first == key_of("a")  # an item in which nothing is matched
    assert second == third == setup.know(body("a3")).keys[0]


def test_what_is_told() -> None:
    """A hit says by which rule it is one, where its answer was generated for another call."""
    setup = ruled()
    assert setup.texts(body("a1")) == (Kind.MISS, "a11")
    assert setup.texts(body("a2")) == (Kind.HIT, "a11")
    for _ in range(2):
        assert detail(setup, body("a1")) == ""
        assert detail(setup, body("a2")) == "ignored: rule-1"
    # Samples that others lack are generated for who lacks them.
    assert setup.texts(body("a2", n=2)) == (Kind.PARTIAL, "a11 a22")
    assert detail(setup, body("a1")) == ""
    assert detail(setup, body("a1", n=2)) == detail(setup, body("a2", n=2)) == "ignored: rule-1"


def test_batches() -> None:
    """Each item of a list is told by itself, whichever list it stands in."""
    setup = ruled()
    setup.ask(body(["a1", "b1"]))
    assert detail(setup, body(["b1", "a1"])) == ""
    assert detail(setup, body(["a2", "b1"])) == "ignored: rule-2"
    assert detail(setup, body("a1")) == ""
    kind, answer = setup.texts(body(["x1", "x2"]))  # equal under the rule: two samples of one pool
    assert (kind, answer) == (Kind.MISS, "x13 x24")
    assert detail(setup, body(["x1", "x2"])) == ""
    assert detail(setup, body(["x2", "x1"])) == "ignored: rule-2"


def test_what_is_stored_as_it_is() -> None:
    """What was stored before there were rules still answers the very same call, and no other."""
    plain = Setup()
    for one in (body("a1"), body("b1", n=2), body(["c1", "d"])):
        plain.ask(one)
    setup = ruled(store=plain.store)
    for one in (body("a1"), body("b1", n=2), body("b1"), body(["c1", "d"]), body("c1")):
        assert detail(setup, one) == ""
    assert setup.texts(body("a2"))[0] is Kind.MISS
    assert setup.texts(body("b1", n=3))[0] is Kind.MISS  # not all of it is stored as it is
    assert detail(setup, body("a1")) == ""
    assert setup.texts(body("a3"))[0] is Kind.HIT


def test_rules_of_others() -> None:
    """What is stored under one rule answers neither under another one, nor without rules."""
    setup = ruled("text=[0-9]")
    setup.ask(body("a1"))
    for other in (ruled("text=[0-9x]", store=setup.store), Setup(setup.store)):
        for text in ("a1", "a2"):
            assert not other.exchange.lookup.plan(other.know(body(text))).have
    same = ruled("**=[0-9]", "other=x", store=setup.store)
    assert detail(same, body("a3")) == "ignored: rule-1"


def test_seeds() -> None:
    """Where a seed is all that samples differ by, two prompts of a call are never one pool."""
    setup = ruled()
    call = {"model": "m", "prompt": ["a1", "a2"], "seed": 1}
    assert len(set(setup.know(call, COMPLETIONS).keys)) == 2
    assert len(set(setup.know({**call, "prompt": ["a1", "b2"]}, COMPLETIONS).keys)) == 2
    unseeded = {name: value for name, value in call.items() if name != "seed"}
    assert len(set(setup.know(unseeded, COMPLETIONS).keys)) == 1


@each(
    ("rule", "call"),
    [
        (r"messages[*].role=ser", {"messages": [{"role": "user", "content": "a"}]}),
        (r"**=\d", {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "x1"}]}),
    ],
)
def test_what_is_read(rule: str, call: dict[str, Any]) -> None:
    """Whatever a rule leaves out, the call that is made is the client's own."""
    setup = ruled(rule)
    fetch = setup.fetch(call, CHAT)
    assert fetch.body is None
    assert fetch.known.call.body == call
    assert fetch.known.left_out


def test_calls_at_random() -> None:
    """Whatever is asked in whatever order, each answer is of a prompt that is equal but for what a
    rule matches; it is told exactly where it is of another one; and who has no rule, or has another
    one, gets what was generated for just that prompt, or by that rule."""
    draw = random.Random(3)
    store = MemoryStore()
    setups = {
        r"\d": ruled(r"text=\d+", r"text[*]=\d+", store=store),
        "[12]": ruled("text=[12]+", "text[*]=[12]+", store=store),
        "(?!)": Setup(store),
    }
    told: Counter[tuple[str, bool]] = Counter()
    for number in range(3000):
        regex = draw.choice(list(setups))
        prompts = ["".join(draw.choices("ab123", k=3)) + ":" for _ in range(draw.randrange(1, 3))]
        asked = body(prompts if len(prompts) > 1 else prompts[0], draw.randrange(1, 3))
        setup = setups[regex]
        setup.generated = number * 10
        found = setup.receive(asked)
        _, answer = setup.ask(asked)
        answers = answer if isinstance(answer, list) else [answer]
        of = [one["text"].partition(":")[0] + ":" for one in answers]
        wanted = [prompt for prompt in prompts for _ in range(len(of) // len(prompts))]
        for got, prompt in zip(of, wanted, strict=True):
            assert re.sub(f"(?:{regex})+", "_", got) == re.sub(f"(?:{regex})+", "_", prompt)
        if isinstance(found, Hit):
            assert bool(found.outcome.detail) is (of != wanted)
            told[regex, of != wanted] += 1
    assert told[r"\d", True] > 50 < told["[12]", True]
    assert told["(?!)", False] > 100
    assert not told["(?!)", True]

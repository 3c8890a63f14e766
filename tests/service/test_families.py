"""Greedy calls that are answered by what is stored for others of their family."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Any

import pytest

from sglang_cached_addon.core.policy import Mode
from sglang_cached_addon.service import families
from sglang_cached_addon.store.memory import MemoryStore
from tests.service.greedy import Greedy, body, greedy, told

SCORED = {"return_logprob": True}

SCENES: dict[str, list[tuple[dict[str, Any], str]]] = {
    "a shorter limit is cut": [
        (body("a 99", 30), "miss"), (body("a 99", 5), "hit cut from 30 tokens"),
        (body("a 99", 5), "hit"), (body("a 99", 29), "hit cut from 30 tokens"),
        (body("a 99", 31), "miss"), (body("b 99", 5), "miss"),
    ],
    "an answer that has stopped serves all limits above": [
        (body("a 8", 30), "miss"), (body("a 8", 8), "hit"), (body("a 8", 85), "hit"),
        (body("a 8", 7), "hit cut from 8 tokens"), (body("a 8", 1), "hit cut from 7 tokens"),
        (body("a 8", 86), "miss"),
    ],
    "a limit that is not there is the server's own": [
        (body("a 99", None), "miss"), (body("a 99", 98), "hit cut from 99 tokens"),
        (body("b 200", None), "miss"), (body("b 200", 128), "hit"),
        (body("b 200", 127), "hit cut from 128 tokens"),
        (body("c 8", 30), "miss"), (body("c 8", None), "miss"),
    ],
    "a cut within a character is a miss": [
        (body("a 99", 30), "miss"), (body("a 99", 10), "miss"),
        (body("a 99", 11), "hit cut from 30 tokens"), (body("a 99", 20), "miss"),
    ],
    "the limit that is cut least is taken": [
        (body("a 99", 12), "miss"), (body("a 99", 30), "miss"),
        (body("a 99", 21), "hit cut from 30 tokens"),
        (body("a 99", 15), "hit cut from 21 tokens"),
    ],
    "log-probabilities are taken out, and not put in": [
        (body("a 99", 30, **SCORED), "miss"), (body("a 99", 30), "hit"),
        (body("a 99", 5), "hit cut from 30 tokens"),
        (body("a 99", 5, **SCORED), "hit cut from 30 tokens"),
        (body("b 99", 30), "miss"), (body("b 99", 5, **SCORED), "miss"),
        (body("a 99", 5, top_logprobs_num=1, **SCORED), "miss"),
    ],
    "what is not of the family is not asked for another": [
        (body("a 99", 30), "miss"), (body("a 99", 5, return_hidden_states=True), "miss"),
        (body("a 99", 5, params={"stop": "x"}), "miss"),
        (body("a 99", 5, params={"temperature": 1}), "miss"),
        (body("a 99", 5, params={"min_new_tokens": 9}), "miss"),
    ],
    "as many samples as are wanted, and prompts of a list each for itself": [
        (body("a 99", 30), "miss"), (body("a 99", 5, 2), "miss"),
        (body("b 99", 30, 3), "miss"), (body("b 99", 5, 2), "hit cut from 30 tokens"),
        (body("b 99", 5, 3), "partial"),
        (body("c 99", 30), "miss"), (body("d 8", 40), "miss"),
        (body(["c 99", "e 99", "d 8"], 9), "partial cut from 30 tokens"),
        (body(["c 99", "d 8", "e 99"], 9), "hit"),
        (body(["b 99", "b 99"], 7), "hit cut from 30 tokens"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_scenes(scene: Sequence[tuple[dict[str, Any], str]]) -> None:
    """Each answer is what the model says to the call alone; what became of it is as told."""

    @greedy()
    async def play(stage: Greedy) -> None:
        assert [await stage.gets(asked) for asked, _ in scene] == [kind for _, kind in scene]

    play()


@greedy()
async def test_in_any_order(stage: Greedy) -> None:
    """Whatever was asked before, each answer is what the model says to the call alone."""
    dice, kinds = random.Random(3), Counter[str]()
    prompts = ["a 99", "b 17", "c 30", "d 9", "e 31"]
    for _ in range(250):
        text = dice.choice([*prompts, dice.sample(prompts, 2)])
        limit, n = dice.choice([None, *range(1, 60)]), dice.choice([1, 1, 1, 2])
        scores = SCORED if dice.random() < 0.2 else {}
        kinds[(await stage.gets(body(text, limit, n, **scores)))[:7]] += 1
    assert kinds["hit cut"] > 30
    assert kinds["hit"] > 30


@greedy()
async def test_what_upstream_is_asked(stage: Greedy) -> None:
    """Of a list, only the prompts of which nothing will do; for texts, once for each cut."""
    for asked in (body("a 99"), body("b 99"), body(["a 99", "c 99", "b 99"], 9)):
        await stage.gets(asked)
    assert stage.heard == ["30 of 1", "30 of 1", "spell", "spell", "9 of 1"]
    assert stage.counters.as_json()["samples_from_upstream"] == 3


@greedy()
async def test_terms(stage: Greedy) -> None:
    """Who wants nothing stored gets nothing cut; who wants nothing from upstream, no text."""
    await stage.gets(body("a 99"))
    await stage.gets(body("b 8"))
    wanted = [
        (body("a 99", 5), {"cache_control": "no-cache"}, "miss"),
        (body("a 99", 6), {"cache_control": "max-age=9"}, "miss"),
        (body("a 99", 7), {"cache_control": "only-if-cached"}, "denied only-if-cached"),
        (body("b 8", 40), {"cache_control": "only-if-cached"}, "hit"),
    ]
    for asked, headers, kind in wanted:
        assert await stage.gets(asked, **headers) == kind, headers


def test_servers() -> None:
    """Where a server's greedy answers depend on more, or upstream has no text, there is no cut."""
    servers: list[tuple[dict[str, Any], bool, bool]] = [
        ({}, True, True),
        ({"version": "0.5.22"}, True, False),
        ({"dllm_algorithm": "x"}, False, False),
        ({"preferred_sampling_params": "{}"}, False, False),
        ({"speculative_algorithm": "EAGLE"}, True, True),
    ]
    for more, is_cut, is_end in servers:

        @greedy(told(**more))
        async def ask(stage: Greedy, expected: Any = (more, is_cut, is_end)) -> None:
            more, is_cut, is_end = expected
            await stage.gets(body("a 99"))
            await stage.gets(body("b 8"))
            found = [await stage.gets(asked) for asked in (body("a 99", 5), body("b 8", 8))]
            assert found[0] == ("hit cut from 30 tokens" if is_cut else "miss"), more
            assert found[1] == ("hit" if is_end else "miss"), more

        ask()


def test_of_a_former_process() -> None:
    """What was stored for others is known to the next process that has the store."""
    store = MemoryStore()

    @greedy(store=store)
    async def before(stage: Greedy) -> None:
        await stage.gets(body("a 99"))

    @greedy(store=store, mode=Mode.READONLY)
    async def after(stage: Greedy) -> None:
        size = store.samples
        for _ in range(2):
            assert await stage.gets(body("a 99", 5)) == "hit cut from 30 tokens"
        assert store.samples == size

    before()
    after()


@greedy()
async def test_cleared_meanwhile(stage: Greedy) -> None:
    """What was cleared while upstream was asked for the text is not given, nor stored again."""

    def clear(asked: Any) -> None:
        stage.store.clear()
        stage.spell(asked)

    await stage.gets(body("a 99"))
    stage.spelling = clear
    assert await stage.gets(body("a 99", 5)) == "miss"


@greedy()
async def test_too_many_variants(stage: Greedy) -> None:
    """A family of too many limits is known in part, and never wrong."""
    for limit in range(1, families.MOST_VARIANTS + 9):
        await stage.gets(body("a 500", 200 + limit))
    kinds = [await stage.gets(body("a 500", 5 + limit)) for limit in (0, 1)]
    assert kinds == ["hit cut from 201 tokens"] * 2
    assert await stage.gets(body("a 500", 200 + families.MOST_VARIANTS + 8)) == "hit"


def test_ttl() -> None:
    """What has expired is not cut."""
    store = MemoryStore(ttl=1e-9)

    @greedy(store=store)
    async def ask(stage: Greedy) -> None:
        assert [await stage.gets(body("a 99", k)) for k in (30, 5)] == ["miss", "miss"]

    ask()
    assert store.ttl < inf


def test_unknown_dialect() -> None:
    """An API that has no families is none the worse for it."""

    @greedy()
    async def ask(stage: Greedy) -> None:
        dialect = stage.exchange.lookup.dialects["POST", "/generate"]
        without = type("Without", (), {name: getattr(dialect, name) for name in
                                       ("name", "read", "trim", "split", "write")})()  # fmt: skip
        stage.exchange.lookup.dialects = {("POST", "/generate"): without}
        assert [await stage.gets(body("a 99", k)) for k in (30, 5)] == ["miss", "miss"]

    ask()

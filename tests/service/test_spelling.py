"""Texts of tokens, which upstream is asked for before an answer is cut."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.service import spelling
from tests.service.greedy import Greedy, body, greedy, spelled
from tests.tables import each
from tests.upstream.scripted import Asked

ODD: list[tuple[int, Any]] = [
    (500, {}), (200, b"not json"), (200, {"text": "one"}), (200, {"text": ["one"]}), (200, []),
    (200, {"text": [" w100", 7]}), (200, {"texts": []}),
    # not as the answer was written, or not its beginning
    (200, {"text": [" w100", "another"]}),
    (200, {"text": ["w100", spelled([*range(100, 130)])]}),
]  # fmt: skip


@each(("status", "said"), ODD)
def test_odd_answers(status: int, said: Any) -> None:
    """Whatever upstream says there, the call is answered, and nothing is cut by it."""

    @greedy()
    async def ask(stage: Greedy) -> None:
        stage.spelling = lambda asked: asked.answer(status, said)
        assert [await stage.gets(body("a 99", k)) for k in (30, 5, 6)] == ["miss"] * 3
        assert stage.heard.count("spell") == 2

    ask()


@greedy()
async def test_absent(stage: Greedy) -> None:
    """A server that has no such route is asked once."""
    stage.spelling = lambda asked: asked.answer(404, {})
    assert [await stage.gets(body("a 99", k)) for k in (30, 5, 6)] == ["miss"] * 3
    assert stage.heard.count("spell") == 1


@greedy()
async def test_hung_up(stage: Greedy) -> None:
    """A connection that breaks there is none of the call's."""
    stage.spelling = Asked.cut
    assert [await stage.gets(body("a 99", k)) for k in (30, 5)] == ["miss"] * 2


@greedy()
async def test_slow(stage: Greedy, monkeypatch: Any) -> None:
    """Upstream may take so long, and no longer."""
    monkeypatch.setattr(spelling, "SECONDS", 0.01)
    stage.spelling = lambda asked: None
    assert [await stage.gets(body("a 99", k)) for k in (30, 5)] == ["miss"] * 2


@greedy()
async def test_who_asks(stage: Greedy) -> None:
    """Upstream is shown who asks."""
    keys: list[str] = []

    def spell(asked: Asked) -> None:
        keys.append(asked.headers["authorization"])
        stage.spell(asked)

    stage.spelling = spell
    await stage.gets(body("a 99"), authorization="Bearer x")
    assert await stage.gets(body("a 99", 5), authorization="Bearer x") == "hit cut from 30 tokens"
    assert keys == ["Bearer x"]


@greedy()
async def test_once_a_prompt(stage: Greedy) -> None:
    """One text is asked for, however many longer answers there are."""
    for limit in (12, 15, 18):
        await stage.gets(body("a 99", limit))
    assert await stage.gets(body("a 99", 10)) == "miss"
    assert stage.heard.count("spell") == 1

"""Asking for what is short."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.identity import SGLANG, VLLM, Server
from sglang_cached_addon.dialects import trimming
from tests.dialects.bodies import minter
from tests.tables import each


@each(
    ("shortfalls", "n", "order"),
    [
        ((1,), 1, (0,)),
        ((3,), 3, (0,)),
        ((2, 2), 2, (0, 1)),
        ((0, 2), 2, (1,)),
        ((2, 0, 2), 2, (0, 2)),
        ((1, 2), 1, (0, 1, 1)),
        ((3, 0, 1), 1, (0, 0, 0, 2)),
        ((0, 0, 1), 1, (2,)),
    ],
)
def test_fill_covers_every_shortfall(
    shortfalls: tuple[int, ...], n: int, order: tuple[int, ...]
) -> None:
    """An upstream call covers each shortfall exactly."""
    call = Call({}, (b"",) * len(shortfalls), 3, True)
    assert trimming.draw(call, shortfalls, Server(VLLM)) == (n, order, ())
    assert tuple(order.count(i) * n for i in range(len(shortfalls))) == shortfalls


@each(
    ("call", "order", "n", "wanted", "known"),
    [
        (Call({}, (b"",), 1, False, ("x",)), (0,), 1, "%s1", {"x": "%s1"}),
        (Call({}, (b"",), 3, False), (0,), 3, "%s1", {}),
        (Call({}, (b"",), 3, False), (0,), 1, "%s1", {}),
        (Call({}, (b"",) * 2, 1, True, ("a", "b")), (0, 1), 1, ["%s1", "%s2"], "both"),
        (Call({}, (b"",) * 2, 1, True, ("a", "b")), (1,), 1, ["%s1"], {"b": "%s1"}),
        (Call({}, (b"",) * 2, 2, True), (0, 1, 1), 1, ["%s1", "%s2", "%s3"], {}),
        (Call({}, (b"",) * 2, 2, True), (0, 1), 2, "%s1", {}),
    ],
)
def test_mint_rids(call: Call, order: tuple[int, ...], n: int, wanted: Any, known: Any) -> None:
    """An upstream call has ids of its own, so that two calls can have the same `rid`."""

    def minted(value: Any) -> Any:
        return value.replace("%s", "0" * 31)

    body: dict[str, Any] = {"rid": "anything"}
    found = trimming.mint_rids(call, body, order, n, minter())
    assert body["rid"] == (
        [minted(s) for s in wanted] if isinstance(wanted, list) else minted(wanted)
    )
    if known == "both":
        known = {"a": "%s1", "b": "%s2"}
    assert found == {rid: minted(unique) for rid, unique in known.items()}


@each("body", [{}, {"rid": None}])
def test_no_rid(body: dict[str, Any]) -> None:
    """A body without a `rid` gets none."""
    before = dict(body)
    assert trimming.mint_rids(Call({}, (b"",), 1, False), body, (0,), 1, minter()) == {}
    assert body == before


def test_take() -> None:
    """Lists that have a value for each prompt are cut to the prompts that are wanted."""
    lists = {"p": ["a", "b", "c"], "q": "one for all", "r": None, "s": [1, 2, 3]}
    body: dict[str, Any] = dict(lists)
    trimming.take(body, ("p", "q", "r", "absent"), (2, 0, 0))
    assert body == {"p": ["c", "a", "a"], "q": "one for all", "r": None, "s": [1, 2, 3]}
    assert lists["p"] == ["a", "b", "c"]


def test_samples_of_a_seed() -> None:
    """With a seed, all samples of a prompt are asked for and the stored ones skipped, as each may
    depend on its place; not with SGLang, where a seed makes no difference between them."""
    for is_seeded, engine, drawn in (
        (False, VLLM, (2, (1,), ())),
        (True, SGLANG, (2, (1,), ())),
        (True, VLLM, (3, (1,), (1,))),
        (True, "", (3, (1,), (1,))),
    ):
        call = Call({}, (b"a", b"b"), 3, True, is_seeded=is_seeded)
        assert trimming.draw(call, (0, 2), Server(engine)) == drawn, (is_seeded, engine)

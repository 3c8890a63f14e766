"""What dialects share for asking upstream for the samples that are short.

Pure: gives how many samples of which prompt are asked for, and changes a body to that end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, Mint
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG


def draw(
    call: Call, shortfalls: Sequence[int], server: Server
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The `n`, `order` and `skip` of an upstream call that fetches all that is short: `n` is the
    shortfall if all items have the same, else 1, with items repeated.

    With a seed, sample i of a prompt may depend on the seed and on i, as it does with vLLM: a
    sample that is asked for alone would be the first one again. So all samples are asked for, and
    those that are stored are skipped. With SGLang, a seed makes all samples equal, or does
    nothing."""
    if call.is_seeded and server.engine != SGLANG:
        order = tuple(i for i, short in enumerate(shortfalls) if short)
        return call.n, order, tuple(call.n - shortfalls[i] for i in order)
    wanted = {short for short in shortfalls if short}
    n = wanted.pop() if len(wanted) == 1 else 1
    return n, tuple(i for i, short in enumerate(shortfalls) for _ in range(short // n)), ()


def mint_rids(
    call: Call, body: dict[str, Any], order: Sequence[int], n: int, mint: Mint
) -> dict[str, str]:
    """Replaces `rid` in the body of an upstream call by unique ids; gives them by the client's own
    ids.

    Two calls of clients may have the same `rid` at the same time, which SGLang would refuse."""
    if body.get("rid") is None:
        return {}
    if n > 1:
        body["rid"] = mint()
        return {}
    minted = [mint() for _ in order]
    body["rid"] = minted if call.batched else minted[0]
    return {
        call.rids[item]: unique for item, unique in zip(order, minted, strict=True) if call.rids
    }


def take(body: dict[str, Any], per_item: Iterable[str], order: Sequence[int]) -> None:
    """Keeps, in each per-item list of a body, the values of the items in `order`."""
    for name in per_item:
        body[name] = [body[name][i] for i in order]

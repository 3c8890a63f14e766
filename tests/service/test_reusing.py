"""What is said of an answer that was cut."""

from __future__ import annotations

from sglang_cached_addon.core.outcome import Kind
from tests.service.greedy import Greedy, body, greedy


@greedy()
async def test_what_is_told(stage: Greedy) -> None:
    """A cut answer is a hit that says so, and saves what it has; the next one is stored by then."""
    await stage.gets(body("a 99"))
    asked = stage.make("/generate", body("a 99", 5), {})
    outcome = (await stage.receive(asked)).outcome
    assert outcome.kind is Kind.HIT
    status = 'sglang-cached; hit; key="%s"; detail="cut from 30 tokens"'
    assert outcome.cache_status == status % outcome.key[:16].hex()
    assert outcome.line("/generate", 0.001) == (
        "[Cache hit] /generate 1/1 1.0 ms (cut from 30 tokens)"
    )
    assert stage.counters.tokens_saved == 5
    assert await stage.gets(body("a 99", 5)) == "hit"
    assert stage.counters.hits == 2


@greedy()
async def test_once(stage: Greedy) -> None:
    """A call looks once; what then comes of it is a fetch like any other."""
    await stage.gets(body("a 99", 5))
    assert await stage.gets(body("a 99", 30)) == "miss"
    assert stage.heard == ["5 of 1", "30 of 1"]

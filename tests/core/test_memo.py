"""A bounded memory stays bounded, and keeps what is used."""

from __future__ import annotations

from sglang_cached_addon.core.memo import Memo


def test_remembers_what_is_used() -> None:
    """What is asked for survives; what is not makes room."""
    memo: Memo[int, str] = Memo(32)
    memo.put(-1, "used", 1)
    memo.put(-2, "unused", 1)
    for i in range(100):
        memo.put(i, "x", 1)
        assert memo.get(-1) == "used"
    assert memo.get(-2) is None


def test_is_bounded() -> None:
    """However much is put in, no more than two generations are held."""
    memo: Memo[int, str] = Memo(160)
    for i in range(1000):
        memo.put(i, "x", 10)
    assert 1 <= sum(memo.get(i) is not None for i in range(1000)) <= 32


def test_heavy_values_are_not_kept() -> None:
    """One large value does not drive out everything else."""
    memo: Memo[int, str] = Memo(160)
    memo.put(1, "light", 1)
    memo.put(2, "heavy", 100)
    assert (memo.get(1), memo.get(2)) == ("light", None)
    assert not memo.charge(100)
    assert memo.charge(1)


def test_clear() -> None:
    """Nothing is left after a clear."""
    memo: Memo[int, str] = Memo(160)
    memo.put(1, "x", 1)
    memo.clear()
    assert memo.get(1) is None

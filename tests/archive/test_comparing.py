"""Two caches compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_cached_addon.archive.comparing import Compared, Said, Side, compare
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.journal import Journal

ONE, TWO = b"model--1", b"model--2"


def key(number: int, model: bytes = ONE) -> bytes:
    return model + bytes([number]) * 24


def said(text: str, end: str = "stop", at: float = 1.0) -> Sample:
    """A sample, whose id is of no account."""
    meta = {"id": f"{text} {at}", "finish_reason": {"type": end}}
    return Sample(json.dumps({"text": text, "meta_info": meta}).encode(), at, 0.5, 3)


def call(number: int) -> bytes:
    return b'{"text":"call %d"}' % number


def fill(folder: Path, *pools: tuple[int, str], model: bytes = ONE) -> Side:
    """A folder with samples of one letter each."""
    store = DiskStore(folder)
    for number, texts in pools:
        for at, text in enumerate(texts):
            one = Addition(key(number, model), "sglang-generate", call(number), [said(text, at=at)])
            store.append(one)
    store.close()
    return Side(folder / "cache.jsonl")


def brief(found: Compared) -> tuple[str, str, str, str]:
    texts = ["".join(one.text for one in has.samples) if has else "" for has in (found.a, found.b)]
    return json.loads(found.call.content)["text"][-1], found.verdict, *texts  # type: ignore[return-value]


def briefs(a: Side, b: Side) -> list[tuple[str, str, str, str]]:
    return [brief(found) for found in compare(a, b)]


def test_compare(tmp_path: Path) -> None:
    """Equal calls are found, whichever model they are of; what one has more of is no difference.
    They come in the order in which they were asked first."""
    a = fill(tmp_path / "a", (3, "xy"), (1, "a"), (2, "b"), (4, "q"), (6, "m"))
    b = fill(tmp_path / "b", (5, "z"), (1, "a"), (2, "c"), (3, "xyz"), (6, "nm"), model=TWO)
    expected = [
        ("3", "same", "xy", "xyz"), ("1", "same", "a", "a"), ("2", "differs", "b", "c"),
        ("4", "only_a", "q", ""), ("6", "differs", "m", "nm"), ("5", "only_b", "", "z"),
    ]  # fmt: skip
    assert briefs(a, b) == expected
    swapped = {"only_a": "only_b", "only_b": "only_a"}
    turned = [(name, swapped.get(how, how), two, one) for name, how, one, two in expected]
    assert sorted(briefs(b, a)) == sorted(turned)
    assert {how for _, how, _, _ in briefs(a, a)} == {"same"}
    (found,) = (one for one in compare(a, b) if one.verdict == "only_b")
    assert found.call.key == key(5, TWO)
    assert found.call.samples == [Said("z", "stop")]


def test_ends(tmp_path: Path) -> None:
    """Answers of one text that have ended otherwise differ."""
    for name, end in (("a", "stop"), ("b", "length")):
        store = DiskStore(tmp_path / name)
        store.append(Addition(key(1), "sglang-generate", call(1), [said("x", end)]))
        store.close()
    (found,) = compare(*(Side(tmp_path / name / "cache.jsonl") for name in ("a", "b")))
    assert found.verdict == "differs"


def test_parts(tmp_path: Path) -> None:
    """A side may be one model, or some places of each pool."""
    fill(tmp_path, (1, "abc"), (2, "x"))
    whole = fill(tmp_path, (1, "abd"), (3, "y"), model=TWO)
    one, two = (
        Side(whole.journal, lambda found, model=model: found.startswith(model))  # type: ignore[misc]
        for model in (ONE, TWO)
    )
    assert briefs(one, two) == [
        ("1", "differs", "abc", "abd"), ("2", "only_a", "x", ""), ("3", "only_b", "", "y"),
    ]  # fmt: skip
    first, last = (
        Side(whole.journal, one.is_wanted, lambda found, at=at: at)  # type: ignore[misc]
        for at in ([0], [2, 1, 9])
    )
    assert briefs(first, last) == [("1", "differs", "a", "cb"), ("2", "only_a", "x", "")]
    # Of two models on one side, what was asked last.
    assert ("1", "same", "abd", "abd") in briefs(whole, two)


def test_what_does_not_count(tmp_path: Path) -> None:
    """What was replaced or removed is not compared, and no more is what cannot be read."""
    a = fill(tmp_path / "a", (1, "a"), (2, "b"))
    store = DiskStore(tmp_path / "b")
    store.append(Addition(key(1), "sglang-generate", call(1), [said("old")]))
    store.append(Addition(key(1), "sglang-generate", b"", [said("a")], since=9e9))
    store.append(Addition(key(2), "sglang-generate", call(2), [said("b")]))
    store.append(Addition(key(3), "variants", b"", [said("no call")]))
    store.remove(key(2))
    store.close()
    with open(tmp_path / "b" / "cache.jsonl", "ab") as file:
        file.write(b"broken\n{torn")
    b = Side(tmp_path / "b" / "cache.jsonl")
    assert briefs(a, b) == [("1", "same", "a", "a"), ("2", "only_a", "b", "")]


def test_beside_a_writer(tmp_path: Path) -> None:
    """A folder is compared while another process has it, and stays as it is."""
    a = fill(tmp_path, (1, "a"))
    before = a.journal.read_bytes()
    journal = Journal(tmp_path, Fsync.NEVER)
    journal.load()
    assert briefs(a, a) == [("1", "same", "a", "a")]
    journal.close()
    assert a.journal.read_bytes() == before


def test_no_cache(tmp_path: Path) -> None:
    """What is not there is named."""
    with pytest.raises(StoreError, match=r"cannot read .*cache\.jsonl: No such file"):
        list(compare(Side(tmp_path / "cache.jsonl"), Side(tmp_path / "cache.jsonl")))


def test_progress(tmp_path: Path) -> None:
    """It is told how many lines were read."""
    a = fill(tmp_path, (1, "a"))
    told: list[int] = []
    list(compare(a, a, told.append))
    assert told == [0, 0]

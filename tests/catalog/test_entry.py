"""An entry, as people see it."""

from __future__ import annotations

import json

from sglang_cached_addon import dialects
from sglang_cached_addon.catalog.entry import MOST_SHOWN, Entry, Models, preview
from sglang_cached_addon.core.cache import Sample

KEY = b"m" * 8 + b"k" * 24
GENERATE = dialects.installed()["POST", "/generate"]


def sample(text: str, at: float, tokens: int = 3) -> Sample:
    answer = {"text": text, "meta_info": {"finish_reason": {"type": "stop"}}}
    return Sample(json.dumps(answer).encode(), at, 0.5, tokens)


def test_an_entry() -> None:
    """A list has what sums up an entry, and its whole all that there is."""
    samples = [sample("one\ntwo", 20.0), sample("three", 10.0)]
    entry = Entry(KEY, "sglang-generate", samples, b'{"text":"hi  you"}', 99, GENERATE)
    models = Models({b"m" * 8: "org/m"}, b"m" * 8)
    listed = entry.as_json(models)
    assert listed == {
        "key": KEY.hex(), "api": "sglang-generate", "model": "org/m", "is_current": True,
        "samples": 2, "tokens": 6, "bytes": 99, "stored_at": 10.0, "last_stored_at": 20.0,
        "request": "hi you", "answer": "one two",
    }  # fmt: skip
    whole = entry.as_whole(models, [["a", "b"], []])
    assert {name: whole[name] for name in listed} == listed
    assert (whole["call"], whole["texts"]) == ({"text": "hi  you"}, ["hi  you"])
    first, second = whole["answers"]
    assert first == {
        "text": "one\ntwo", "finish_reason": "stop", "tokens": 3, "seconds": 0.5,
        "stored_at": 20.0, "runs": ["a", "b"], "answer": json.loads(samples[0].answer),
    }  # fmt: skip
    assert second["runs"] == []


def test_what_is_not_known() -> None:
    """An entry whose call was not kept, of a model that nobody knows, is shown without those."""
    for content in (b"", b"null"):
        entry = Entry(KEY, "other", [sample("one", 1.0)], content, 9, None)
        listed = entry.as_json(Models({}))
        assert (listed["model"], listed["is_current"], listed["request"]) == (None, False, "")
        assert entry.as_whole(Models({}), [[]])["call"] is None


def test_previews() -> None:
    """A preview is one line, and not long."""
    assert preview(" a\n\n b ") == "a b"
    assert preview("x" * MOST_SHOWN) == "x" * MOST_SHOWN
    assert len(preview("x" * 10 * MOST_SHOWN)) == MOST_SHOWN

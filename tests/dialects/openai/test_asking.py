"""What both APIs ask for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import StreamOptions
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import completions
from sglang_cached_addon.dialects.openai import asking
from tests.tables import each


@each(
    ("body", "wanted"),
    [
        ({}, None),
        ({"stream": False, "stream_options": "upstream's to judge"}, None),
        ({"stream": True}, StreamOptions()),
        ({"stream": True, "stream_options": None}, StreamOptions()),
        ({"stream": True, "stream_options": {}}, StreamOptions()),
        ({"stream": True, "stream_options": {"include_usage": None}}, StreamOptions()),
        ({"stream": True, "stream_options": {"include_usage": True}}, StreamOptions(True)),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            StreamOptions(False, True),
        ),
        ({"stream": True, "return_token_ids": False}, StreamOptions()),
        ({"stream": True, "stream_options": {"include_usage": 1}}, Reason.MALFORMED),
        ({"stream": True, "stream_options": {"include_usage": "true"}}, Reason.MALFORMED),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, Reason.MALFORMED),
        ({"stream": True, "stream_options": [1]}, Reason.MALFORMED),
        ({"stream": "true"}, Reason.MALFORMED), ({"stream": None}, None),
        *(({"stream": True, name: True}, Reason.STREAM) for name in asking.UNSTREAMABLE),
        *(({"stream": False, name: True}, None) for name in asking.UNSTREAMABLE),
    ],
)  # fmt: skip
def test_streaming(body: dict[str, Any], wanted: Any) -> None:
    """A stream is given as the client asks for it."""
    try:
        assert asking.streaming(body) == wanted
    except Refused as refused:
        assert refused.reason is wanted


@each(
    ("options", "asked"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        (
            {"stream_options": {"continuous_usage_stats": True}},
            {"continuous_usage_stats": True, "include_usage": True},
        ),
    ],
)
def test_usage_is_asked_for(options: dict[str, Any], asked: dict[str, Any]) -> None:
    """A stream of upstream is asked for its usage, and the client's body stays as it is."""
    body = {"prompt": "a", "stream": True, **options}
    before = orjson.dumps(body)
    call = completions.DIALECT.read(body)
    sent = completions.DIALECT.trim(call, [1], lambda: "minted")
    assert sent.body["stream_options"] == asked
    assert orjson.dumps(call.body) == before
    plain = completions.DIALECT.read({"prompt": "a"})
    assert "stream_options" not in completions.DIALECT.trim(plain, [1], lambda: "").body


@each("total", [1, 2, 3])
@each("name", ["routed_experts", "cached_tokens_details", "spec_tokens_details"])
def test_reports_that_samples_share(total: int, name: str) -> None:
    """A report on the first sample, or on all of them in one place, is refused for several."""
    asking.refuse_dependent({f"return_{name}": False}, total)
    asking.refuse_dependent({}, total)
    with pytest.raises(Refused) if total > 1 else nullcontext() as caught:
        asking.refuse_dependent({f"return_{name}": True}, total)
    assert caught is None or caught.value.reason is Reason.INSEPARABLE


@each("best_of", [None, 1, 2, 0, "2", [1]])
def test_best_of(best_of: Any) -> None:
    """Where a sample is the best of several, none of them stands for itself."""
    for total in (1, 3):
        with nullcontext() if best_of in (None, 1) else pytest.raises(Refused) as caught:
            asking.refuse_dependent({"best_of": best_of}, total)
        assert caught is None or caught.value.reason is Reason.BEST_OF


def test_only_what_the_client_has_not_asked_for_is_told_as_such() -> None:
    """Usage so far and tokens are asked for where samples cannot be told apart without, and what
    the client itself has asked for is not taken out of its answer."""
    continuous = {"stream_options": {"continuous_usage_stats": True}}
    for n, fields, counts, added in (
        (1, {"stream": True}, False, ()),
        (2, {"stream": True}, True, ()),
        (2, {"stream": True, **continuous}, False, ()),
        (1, {}, False, ()),
        (2, {}, False, ("token_ids", "prompt_token_ids")),
        (2, {"return_token_ids": True}, False, ()),
    ):
        call = completions.DIALECT.read({"prompt": "a", "n": n, **fields})
        sent = completions.DIALECT.trim(call, [n], lambda: "", Server(SGLANG))
        assert (sent.counts, sent.added) == (counts, added), (n, fields)
        asked = sent.body.get("stream_options", {})
        assert asked.get("continuous_usage_stats", False) is (
            counts or continuous.items() <= fields.items()
        )

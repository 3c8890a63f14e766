"""What becomes of upstream's answers: what is in them, and what their clients get."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import orjson

from sglang_cached_addon.core.call import Split, UpstreamCall
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG, VLLM
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects import completions
from sglang_cached_addon.service import landing, slices

ADDED = ("token_ids", "prompt_token_ids")
TRICKY = 'a "},{" b }]} \\" "token_ids":[1], {"token_ids":'
CHOICE = {
    "token_ids": [7, 8],
    "text": TRICKY,
    "logprobs": {"token_ids": ["kept", {"token_ids": 1}], "x": "token_ids"},
    "prompt_token_ids": [5],
    "finish_reason": "stop",
}


def taken(answer: Any, engine: str, *, is_whole: bool = True, **dumps: Any) -> tuple[Any, Any]:
    """What an answer to a call for two comes to, and what its client gets."""
    dialect = completions.DIALECT
    call = dialect.read({"model": "m", "prompt": "q", "n": 2})
    sent = UpstreamCall(call.body, (0,), 2, server=Server(engine), added=ADDED)
    body = BytesIO(json.dumps(answer, **dumps).encode())
    found, shown = landing.take(dialect, call, sent, body, is_whole=is_whole, pause=lambda: None)
    return found, shown and orjson.loads(shown)


def test_what_only_we_have_asked_for() -> None:
    """No client sees it, however large its answer is, and in whatever form it comes."""
    numbers = [0] * (slices.LARGEST + 1)
    small = [{**CHOICE, "index": k} for k in (0, 1)]
    large = [{**choice, "x": "x" * slices.LARGE} for choice in small]
    too_large = [small[0], {**small[1], "x": numbers, "y": "y" * slices.LARGE}]
    ours_is_too_large = [small[0], {**small[1], "token_ids": numbers, "y": "y" * slices.LARGE}]
    usage = {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    for name, choices, reason in (
        ("small", small, None),
        ("large", large, None),
        ("too large", too_large, Reason.LARGE_SAMPLE),
        ("ours is too large", ours_is_too_large, Reason.LARGE_SAMPLE),
        ("none", [], Reason.UNREADABLE),
    ):
        is_slow = reason is Reason.LARGE_SAMPLE
        for engine in (VLLM,) if is_slow else (SGLANG, VLLM):
            gone: dict[str, Any] = dict.fromkeys(ADDED) if engine == VLLM else {}
            wanted = [
                {n: v for n, v in choice.items() if n not in ADDED} | gone for choice in choices
            ]
            for form in ({"separators": (",", ":")}, {}, {"indent": 1})[: 1 if is_slow else 3]:
                answer = {"id": "x", "choices": choices, "usage": usage}
                found, shown = taken(answer, engine, **form)
                said = None if isinstance(found, Split) else found
                assert said is reason, (name, engine, form)
                assert shown == {**answer, "choices": wanted}, (name, engine, form)


def test_what_is_but_a_part() -> None:
    """It is not written for a client, but where it is none; its size does not matter."""
    numbers = [0] * (slices.LARGEST + 1)
    large = [{**CHOICE, "index": k, "x": numbers, "y": "y" * slices.LARGE} for k in (0, 1)]
    answer = {"choices": large}
    found, shown = taken(answer, SGLANG, is_whole=False, separators=(",", ":"))
    assert isinstance(found, Split)
    assert not shown
    found, shown = taken({"choices": large[:1]}, SGLANG, is_whole=False)
    assert found is Reason.UNREADABLE
    assert not {*ADDED} & {*shown["choices"][0]}


def test_other_answers() -> None:
    """What has no choices is given as it is."""
    for answer in ({"error": "x"}, [1], "x" * slices.LARGE, {"choices": {}, "x": "x"}, None):
        found, shown = taken(answer, SGLANG)
        assert isinstance(found, Reason), answer
        assert shown == answer


def test_ids_of_the_client() -> None:
    """Each is put where ours was, wherever that is, and nothing else is changed."""
    ours = [f"{n:032x}" for n in range(1, 4)]
    rids = {f'mine "{n}"': unique for n, unique in enumerate(ours)}
    for offset in range((128 << 10) - 80, (128 << 10) + 40):
        parts = ["g" * offset, ours[0], "-", ours[1], "g", "f" * 33, "-", ours[2], "0-", "f" * 32]
        body = "".join(parts).encode()
        parts[1], parts[3] = r"mine \"0\"", r"mine \"1\""
        assert landing.with_client_rids(body, rids) == "".join(parts).encode(), offset
    assert landing.with_client_rids(body, {}) is body

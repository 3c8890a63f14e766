"""SGLang's `/v1/systemone`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.systemone import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import item, minter, refusal

QUESTION = {"type": "noul", "instructions": "b"}
BODY: dict[str, Any] = {"model": "m", "state": "a", "questions": {"q": QUESTION}}


def test_a_call_is_one_item() -> None:
    """All of it is in the key, in its order, as a question may be answered together with others."""
    others: list[dict[str, Any]] = [
        {**BODY, name: value}
        for name in ("state", "temperature", "chat_template_kwargs", "not_yet_invented")
        for value in (1, "x", {"x": 1})
    ]
    assert len({item(DIALECT, each) for each in (BODY, *others)}) == len(others) + 1
    two = {"x": QUESTION, "y": QUESTION}
    turned = dict(reversed(two.items()))
    keys = {item(DIALECT, {**BODY, "questions": each}) for each in (two, turned)}
    assert len(keys) == 2


def test_refusals() -> None:
    """What SGLang would refuse, or fetch from elsewhere, is passed on."""
    for name in BODY:
        assert refusal(DIALECT, {**BODY, name: None}) is Reason.MALFORMED, name
    assert refusal(DIALECT, {**BODY, "questions": [QUESTION]}) is Reason.MALFORMED
    for images in (["http://x/a.png"], [{"url": "/tmp/a.png"}], [1]):
        assert refusal(DIALECT, {**BODY, "images": images}) is Reason.MEDIA, images
    assert item(DIALECT, {**BODY, "images": [{"url": "data:image/png;base64,AAAA"}]})


def test_answers() -> None:
    """An answer has one for each question, or is none."""
    pair = next(pair for pair in corpus("systemone") if pair["name"] == "systemone")
    call = DIALECT.read(json.loads(pair["request"]["body"]))
    sent, answer = DIALECT.trim(call, (1,), minter()), json.loads(pair["response"]["body"])
    assert DIALECT.split(call, sent, answer).refusal is None
    for odd, reason in (
        ([], Reason.UNREADABLE), ({**answer, "answers": {}}, Reason.UNREADABLE),
        ({"error": {"message": "no"}}, Reason.ERROR),
    ):  # fmt: skip
        with pytest.raises(Refused) as caught:
            DIALECT.split(call, sent, odd)
        assert caught.value.reason is reason

"""SGLang's `/v1/decisions` and `/v1/systemone`."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.decisions import DECISIONS, SYSTEMONE
from tests.conftest import corpus
from tests.dialects.bodies import item, minter, refusal

DECISION = {"input": "a", "questions": [{"id": "q", "type": "yes_no", "question": "b"}]}
STATE = {"model": "m", "state": "a", "questions": {"q": {"type": "noul", "instructions": "b"}}}


def test_a_call_is_one_item() -> None:
    """All of it is in the key, in its order, as a question may be answered together with others."""
    for dialect, body in ((DECISIONS, DECISION), (SYSTEMONE, STATE)):
        others: list[dict[str, Any]] = [
            {**body, name: value}
            for name in ("model", "temperature", "chat_template_kwargs", "not_yet_invented")
            for value in (None, 1, "x", {"x": 1})
            if not (dialect is SYSTEMONE and name == "model" and value is None)
        ]
        assert len({item(dialect, each) for each in (body, *others)}) == len(others) + 1
    two = {"x": STATE["questions"]["q"], "y": STATE["questions"]["q"]}
    turned = dict(reversed(two.items()))
    assert item(SYSTEMONE, {**STATE, "questions": two}) != item(
        SYSTEMONE, {**STATE, "questions": turned}
    )


def test_refusals() -> None:
    """What SGLang would refuse, or fetch from elsewhere, is passed on."""
    for dialect, body in ((DECISIONS, DECISION), (SYSTEMONE, STATE)):
        for name in body:
            assert refusal(dialect, {**body, name: None}) is Reason.MALFORMED, name
        for images in (["http://x/a.png"], [{"url": "/tmp/a.png"}], [1]):
            assert refusal(dialect, {**body, "images": images}) is Reason.MEDIA, images
        assert item(dialect, {**body, "images": [{"url": "data:image/png;base64,AAAA"}]})


def test_answers() -> None:
    """An answer has one for each question, or is none."""
    for dialect, name in ((DECISIONS, "decisions-one"), (SYSTEMONE, "systemone")):
        pair = next(pair for pair in corpus(name) if pair["name"] == name)
        call = dialect.read(json.loads(pair["request"]["body"]))
        sent, answer = dialect.trim(call, (1,), minter()), json.loads(pair["response"]["body"])
        assert dialect.split(call, sent, answer).refusal is None
        for odd, reason in (
            ([], Reason.UNREADABLE), ({**answer, "answers": {}}, Reason.UNREADABLE),
            ({"error": {"message": "no"}}, Reason.ERROR),
        ):  # fmt: skip
            try:
                dialect.split(call, sent, odd)
            except Exception as refused:
                assert refused.args == (reason,)
            else:
                raise AssertionError(odd)

"""SGLang's `/v1/decisions`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.decisions import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import item, minter, refusal
from tests.tables import each

FIRST, SECOND = ({"id": name, "type": "yes_no", "question": "b"} for name in "xy")
BODY: dict[str, Any] = {"input": "a", "questions": [FIRST]}


def recorded(name: str) -> tuple[dict[str, Any], bytes]:
    """A recorded call, and its answer."""
    pair = next(pair for pair in corpus(name) if pair["name"] == name)
    return json.loads(pair["request"]["body"]), pair["response"]["body"].encode()


def test_key() -> None:
    """A question has one key with its input, in whatever list it stands."""
    both = DIALECT.read({**BODY, "questions": [FIRST, SECOND]})
    assert both.items == (item(DIALECT, BODY), item(DIALECT, {**BODY, "questions": [SECOND]}))
    others: list[dict[str, Any]] = [
        {**BODY, name: value}
        for name in ("model", "temperature", "chat_template_kwargs", "not_yet_invented")
        for value in (None, 1, "x", {"x": 1})
    ]
    others.append({**BODY, "return_prompt_token_ids": True})
    assert len({item(DIALECT, each) for each in (BODY, *others)}) == len(others) + 1


def test_tokens_are_told() -> None:
    """Of many questions, each is made to tell its tokens, which is taken out again; so what is
    kept of each has its own usage, and all come to the answer that SGLang has given."""
    body, answer = recorded("decisions-told")
    told = json.loads(answer)
    asked = {name: value for name, value in body.items() if name != "return_prompt_token_ids"}
    call = DIALECT.read(asked)
    sent = DIALECT.trim(call, (1, 1), minter(), Server(SGLANG))
    assert sent.body == body and sent.is_wider
    split = DIALECT.split(call, sent, told)
    assert split.refusal is None
    usages = [json.loads(one.answer)["usage"]["prompt_tokens"] for one in split.generations]
    assert usages == [len(one["prompt_token_ids"]) for one in told["answers"].values()]
    made = json.loads(DIALECT.write(call, [[one.answer] for one in split.generations]))
    assert made["usage"] == told["usage"] and list(made["answers"]) == list(told["answers"])
    assert not any("prompt_token_ids" in one for one in made["answers"].values())
    alone = DIALECT.read({**asked, "questions": asked["questions"][1:]})
    (_, second) = split.generations
    (said,) = json.loads(DIALECT.write(alone, [[second.answer]]))["answers"]
    assert said == "q3"


def test_nothing_more_is_asked_for() -> None:
    """One question tells all by itself, who wants the tokens has them, and no other server knows
    how."""
    two = {**BODY, "questions": [FIRST, SECOND]}
    for body, short, server in (
        (BODY, (1,), Server(SGLANG)), (two, (0, 1), Server(SGLANG)), (two, (1, 1), Server()),
        ({**two, "return_prompt_token_ids": True}, (1, 1), Server(SGLANG)),
    ):  # fmt: skip
        sent = DIALECT.trim(DIALECT.read(body), short, minter(), server)
        assert not sent.is_wider and sent.body.keys() == body.keys()
    body, answer = recorded("decisions")
    call = DIALECT.read(body)
    split = DIALECT.split(call, DIALECT.trim(call, (1, 1), minter()), json.loads(answer))
    assert split.refusal is Reason.SHARED_USAGE
    assert DIALECT.write(call, [[one.answer] for one in split.generations]) == answer


REFUSED: list[tuple[dict[str, Any], Reason]] = [
    ({"input": None}, Reason.MALFORMED), ({"questions": []}, Reason.MALFORMED),
    ({"questions": {"q": FIRST}}, Reason.MALFORMED), ({"questions": ["x"]}, Reason.MALFORMED),
    ({"questions": [FIRST, FIRST]}, Reason.MALFORMED),
    ({"questions": [{"type": "yes_no"}]}, Reason.MALFORMED),
    ({"images": ["http://x/a.png"]}, Reason.MEDIA), ({"images": [{"url": "/a.png"}]}, Reason.MEDIA),
    ({"images": [1]}, Reason.MEDIA), ({"not_yet_invented": [1]}, Reason.INSEPARABLE),
]  # fmt: skip


@each(("fields", "reason"), REFUSED)
def test_refusals(fields: dict[str, Any], reason: Reason) -> None:
    """What SGLang would refuse, or fetch from elsewhere, is passed on."""
    assert refusal(DIALECT, {**BODY, **fields}) is reason
    assert item(DIALECT, {**BODY, "images": [{"url": "data:image/png;base64,AAAA"}]})


def test_unreadable() -> None:
    """An answer has one for each question, in their order, or is none."""
    body, answer = recorded("decisions")
    call, said = DIALECT.read(body), json.loads(answer)
    sent = DIALECT.trim(call, (1, 1), minter())
    turned = dict(reversed(said["answers"].items()))
    for odd, reason in (
        ([], Reason.UNREADABLE), ({**said, "answers": {}}, Reason.UNREADABLE),
        ({**said, "answers": turned}, Reason.UNREADABLE),
        ({**said, "answers": dict.fromkeys(said["answers"], 1)}, Reason.UNREADABLE),
        ({"error": {"message": "no"}}, Reason.ERROR),
    ):  # fmt: skip
        with pytest.raises(Refused) as caught:
            DIALECT.split(call, sent, odd)
        assert caught.value.reason is reason

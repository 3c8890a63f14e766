"""What a tokenizer makes of texts and of ids."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.tokenize import DETOKENIZE, TOKENIZE
from tests.dialects.bodies import item, minter, refusal

CHAT = {"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function"}]}


def test_a_chat_is_one_item() -> None:
    """What a chat is rendered to depends on all of it, so that its lists are not taken apart."""
    call = TOKENIZE.read(CHAT)
    assert not call.batched and len(call.items) == 1
    assert item(TOKENIZE, CHAT) != item(TOKENIZE, {**CHAT, "tools": []})
    assert refusal(TOKENIZE, {**CHAT, "prompt": "a"}) is Reason.MALFORMED
    assert refusal(TOKENIZE, {"model": "m"}) is Reason.MALFORMED
    picture = {"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}
    named = {"messages": [{"role": "user", "content": [picture]}]}
    assert refusal(TOKENIZE, named) is Reason.MEDIA


def test_only_texts_are_prompts_and_only_ids_are_tokens() -> None:
    """SGLang refuses others, so that nothing is known of what they would be."""
    for prompt in ([1], [[1]], ["a", [1]]):
        assert refusal(TOKENIZE, {"prompt": prompt}) is Reason.MALFORMED, prompt
    for tokens in ("a", [1, [2]], [[1], 2], ["a"], [[True]]):
        assert refusal(DETOKENIZE, {"tokens": tokens}) is Reason.MALFORMED, tokens


def test_an_answer_has_one_value_for_each_row() -> None:
    """One of another length is not taken apart by guess, and members that all share are kept."""
    call = TOKENIZE.read({"prompt": ["a", "b"]})
    sent = TOKENIZE.trim(call, (1, 1), minter())
    answer: dict[str, Any] = {"tokens": [[1], [2, 3]], "count": [1, 2], "max_model_len": 9}
    split = TOKENIZE.split(call, sent, answer)
    assert [json.loads(one.answer) for one in split.generations] == [
        {"tokens": [1], "count": 1, "max_model_len": 9},
        {"tokens": [2, 3], "count": 2, "max_model_len": 9},
    ]
    assert json.loads(TOKENIZE.write(call, [[one.answer] for one in split.generations])) == answer

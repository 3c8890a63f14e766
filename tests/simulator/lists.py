"""Routes that generate nothing: each row of a list is answered for itself."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.simulator.handler import Routes
from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH
from sglang_cached_addon.simulator.words import token_ids, word
from tests.simulator.checks import missing
from tests.simulator.handler import Handler


async def tokenize(handler: Handler) -> None:
    prompt = handler.document().get("prompt")
    if not isinstance(prompt, str | list):
        raise missing("prompt")
    ids: Any = (
        [token_ids(text) for text in prompt] if isinstance(prompt, list) else token_ids(prompt)
    )
    count = [len(each) for each in ids] if isinstance(prompt, list) else len(ids)
    handler.reply({"tokens": ids, "count": count, "max_model_len": CONTEXT_LENGTH})


async def detokenize(handler: Handler) -> None:
    tokens = handler.document()["tokens"]
    if not any(isinstance(each, list) for each in tokens):
        handler.reply({"text": "".join(map(word, tokens))})
        return
    handler.reply({"text": ["".join(map(word, ids)) for ids in tokens]})


ROUTES: Routes = {
    **dict.fromkeys(("/tokenize", "/v1/tokenize"), (("POST",), tokenize)),
    **dict.fromkeys(("/detokenize", "/v1/detokenize"), (("POST",), detokenize)),
}

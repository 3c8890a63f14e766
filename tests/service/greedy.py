"""An upstream that answers greedy calls as SGLang does, and what is asked of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.service.stage import GENERATE, Stage, standing
from tests.upstream.scripted import INFO, SERVER, Asked, AsyncTest, Test, entering

EOS = 2
SAYS = {
    "/model_info": (200, INFO),
    "/server_info": (200, {**SERVER, "version": "0.5.23", "max_req_input_len": 90}),
}
"""A model whose greedy answers may be used for other calls."""


def told(**more: Any) -> dict[str, Any]:
    """As `SAYS`, with more of what the server says of itself."""
    return {**SAYS, "/server_info": (200, {**SAYS["/server_info"][1], **more})}


def body(text: Any, limit: Any = 30, n: int = 1, **more: Any) -> dict[str, Any]:
    """A greedy call. A prompt ends with the number of tokens after which its answer has an end."""
    limits = {} if limit is None else {"max_new_tokens": limit}
    counts = {} if n == 1 else {"n": n}
    params = {"temperature": 0, **limits, **counts, **more.pop("params", {})}
    return {"text": text, "sampling_params": params, **more}


def spelled(ids: list[int]) -> str:
    """The text of tokens. Every tenth is the first half of a character, whose second is next."""
    raw = b"".join(
        "\N{EURO SIGN}".encode()[slice(2) if k % 10 == 9 else slice(2, 3)]
        if k % 10 in (9, 0) and k != 100
        else b" w%d" % k
        for k in ids
        if k != EOS
    )
    return raw.decode(errors="replace")


def native(asked: dict[str, Any], text: str) -> dict[str, Any]:
    """What the model answers to a prompt."""
    limit, end = asked["sampling_params"].get("max_new_tokens", 128), int(text.split()[-1])
    tokens = min(limit, end)
    ids = [*range(100, 100 + tokens)][: tokens - (end <= limit)] + [EOS] * (end <= limit)
    finish = {"type": "stop", "matched": EOS} if end <= limit else {"type": "length",
                                                                     "length": limit}  # fmt: skip
    rows = [[-0.5, k, None] for k in ids]
    scores = {"output_token_logprobs": rows} if asked.get("return_logprob") else {}
    meta = {"id": "up", "finish_reason": finish, "prompt_tokens": 5, **scores,
            "completion_tokens": tokens}  # fmt: skip
    return {"text": spelled(ids), "output_ids": ids, "meta_info": meta}


class Greedy(Stage):
    """A service in front of that model."""

    spelling: Callable[[Asked], None]
    """Answers a call of `/detokenize`."""

    def begin(self) -> None:
        self.heard: list[str] = []
        """What upstream was asked: the limits of calls, and `spell`."""
        self.spelling = self.spell
        self.tasks.append(asyncio.ensure_future(self._answer()))

    async def _answer(self) -> None:
        while True:
            asked = await self.asked()
            if asked.path == "/detokenize":
                self.heard.append("spell")
                self.spelling(asked)
                continue
            said = asked.json
            texts = said["text"] if isinstance(said["text"], list) else [said["text"]]
            params = said["sampling_params"]
            self.heard.append(f"{params.get('max_new_tokens')} of {len(texts)}")
            found = [native(said, text) for text in texts for _ in range(params.get("n", 1))]
            is_list = isinstance(said["text"], list) or params.get("n", 1) > 1
            asked.answer(200, found if is_list else found[0])

    @staticmethod
    def spell(asked: Asked) -> None:
        asked.answer(200, {"text": [spelled(ids) for ids in asked.json["tokens"]]})

    async def gets(self, asked: dict[str, Any], **headers: str) -> str:
        """Asks; what kind of answer it was, with its detail. It has to be what the model says."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.receive(self.make(GENERATE, asked, fields))
        outcome = answer.outcome
        if outcome.kind != "bypass" and getattr(answer, "status", 200) == 200:
            texts, n = asked["text"], asked["sampling_params"].get("n", 1)
            is_list = isinstance(texts, list)
            whole = [native(asked, text) for text in (texts if is_list else [texts])
                     for _ in range(n)]  # fmt: skip
            assert json.loads(answer.body) == (whole if is_list or n > 1 else whole[0])
        await self.settled()
        return f"{outcome.kind} {outcome.detail or outcome.reason or ''}".strip()


@asynccontextmanager
async def _standing(says: dict[str, Any], **kwargs: Any) -> AsyncIterator[Stage]:
    async with standing(says=says, **kwargs) as stage:
        stage.__class__ = Greedy
        assert isinstance(stage, Greedy)
        stage.begin()
        try:
            yield stage
        finally:
            stage.tasks.pop(0).cancel()


def greedy(says: dict[str, Any] = SAYS, **kwargs: Any) -> Callable[[AsyncTest], Test]:
    """A test with such a service of its own."""
    return entering(lambda: _standing(says, **kwargs), "stage")

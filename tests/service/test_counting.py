"""Tokens of texts, which upstream is asked for beside a call for a list of them."""

from __future__ import annotations

import asyncio
from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service import counting
from tests.service.stage import Got, Stage, staged
from tests.tables import each
from tests.upstream.scripted import Asked

PATH = "/v1/embeddings"


def answer(asked: Asked) -> None:
    """As a server does for which each letter is a token."""
    texts = asked.json["input"]
    rows = [{"embedding": [1.0], "index": i} for i in range(len(texts))]
    tokens = sum(map(len, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    asked.answer(200, {"data": rows, "model": "m", "usage": usage})


async def calls(
    stage: Stage, texts: list[str], key: str = ""
) -> tuple[asyncio.Task[Got], dict[str, Asked]]:
    """Asks for a list of texts; the calls that come upstream, by their paths."""
    got = stage.ask(PATH, {"input": texts}, key)
    both = [await stage.asked(), await stage.asked()]
    return got, {asked.path: asked for asked in both}


ODD: list[tuple[int, Any]] = [
    (500, {}), (200, b"not json"), (200, {"count": 3}), (200, {"count": [1]}), (200, []),
    (200, {"count": [1, "2"]}), (200, {"counts": [1, 2]}), (404, {}),
    (200, {"count": [2, 2]}),  # that is not what the answer says
]  # fmt: skip


@each(("status", "said"), ODD)
def test_odd_answers(status: int, said: Any) -> None:
    """Whatever upstream says there, the call is answered, and nothing is stored by guess."""

    @staged()
    async def ask(stage: Stage) -> None:
        got, sent = await calls(stage, ["a", "bb"])
        answer(sent[PATH])
        sent[counting.PATH].answer(status, said)
        assert (await got).brief == "miss 200 shared-usage"
        assert stage.stored == 0

    ask()


@staged()
async def test_counts(stage: Stage) -> None:
    """Texts are counted in their order, with what shows who asks. What is counted is stored, and
    each text has its own."""
    texts = ["x" * (k % 7 + 1) + str(k) for k in range(9)]
    got, sent = await calls(stage, texts, "secret")
    asked = sent[counting.PATH]
    assert (asked.json["prompt"], asked.headers["authorization"]) == (texts, "secret")
    asked.answer(200, {"count": [len(text) for text in texts]})
    answer(sent[PATH])
    assert (await got).brief == "miss 200"
    await stage.settled()
    one = await stage.ask(PATH, {"input": texts[-1]}, "secret")
    assert one.brief == "hit 200" and one.json["usage"]["prompt_tokens"] == len(texts[-1])


@staged()
async def test_absent(stage: Stage) -> None:
    """A server that has no such route is asked once."""
    got, sent = await calls(stage, ["a", "bb"])
    sent[counting.PATH].answer(404, {})
    answer(sent[PATH])
    assert (await got).reason is Reason.SHARED_USAGE
    again = stage.ask(PATH, {"input": ["a", "bb"]})
    answer(await stage.asked())
    assert (await again).reason is Reason.SHARED_USAGE
    assert stage.is_quiet


@staged()
async def test_refused(stage: Stage) -> None:
    """Where the call itself is refused, nobody waits for what its texts have."""
    got, sent = await calls(stage, ["a", "bb"])
    sent[PATH].answer(400, {"message": "no"})
    assert (await got).brief == "miss 400 status"

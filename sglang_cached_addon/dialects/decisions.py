"""SGLang's `/v1/decisions`: answers to questions about an input, by the probabilities of their
options.

Each question is put in a prompt of its own. A sample is the answer to one question. Checked against
SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Generation, Mint, Split, UpstreamCall
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging, listing, listing_display, prompt_tokens, reading

_TELLS = "return_prompt_token_ids"
"""The field that makes each answer tell its tokens."""

_TOLD = ("prompt_token_ids", "label_token_ids")
"""The members in which it does."""


class Decisions(listing.Listing):
    """The dialect of POST `/v1/decisions`."""

    name = "sglang-decisions"
    routes = (("POST", "/v1/decisions"),)
    is_verbatim = False
    display = listing_display.ListDisplay(("input", "questions"), listing_display.of_answers)

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        question = {"id": ".", "type": "score", "question": ".", "levels": ["0", "1"]}
        named = {"model": model} if model else {}
        return ({**named, "input": ".", "questions": [question]},)

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        questions: Any = body.get("questions")
        if not body.get("input") or not isinstance(questions, list) or not questions:
            raise Refused(Reason.MALFORMED)
        ids = [each.get("id") if isinstance(each, dict) else None for each in questions]
        if not all(isinstance(each, str) for each in ids) or len(set(ids)) < len(ids):
            raise Refused(Reason.MALFORMED)
        reading.refuse_images(body)
        return listing.columns_of(body, len(questions), ("questions",), ("images", "input"))

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> UpstreamCall:
        sent = super().trim(call, shortfalls, mint, server)
        if sent.total == 1 or server.engine != SGLANG or sent.body.get(_TELLS):
            return sent
        return replace(sent, body={**sent.body, _TELLS: True}, is_wider=True)

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        if judging.is_error(answer):
            raise Refused(Reason.ERROR)
        answers = answer.get("answers") if isinstance(answer, dict) else None
        ids = [question["id"] for question in sent.body["questions"]]
        if not isinstance(answers, dict) or list(answers) != ids:
            raise Refused(Reason.UNREADABLE)
        if not all(isinstance(each, dict) for each in answers.values()):
            raise Refused(Reason.UNREADABLE)
        told = [each.get(_TOLD[0]) for each in answers.values()]
        usages, is_exact = prompt_tokens.share(answer.get("usage"), sent, told)
        generations = []
        for item, name, usage in zip(sent.order, ids, usages, strict=True):
            said = answers[name]
            if sent.is_wider:
                said = {name: value for name, value in said.items() if name not in _TOLD}
            sample = {**answer, "answers": {name: said}, "usage": usage}
            generations.append(Generation(item, judging.dump(sample), 0))
        return Split(tuple(generations), None if is_exact else Reason.SHARED_USAGE)

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        total = prompt_tokens.Total()
        said: dict[str, Any] = {}
        for sample in listing.spread(call, samples):
            answer = orjson.loads(sample)
            total.add(answer["usage"])
            said |= answer["answers"]
        return judging.dump({**answer, "answers": said, "usage": total.usage})


DIALECT = Decisions()

"""SGLang's `/v1/systemone`: answers to questions about a state.

A call is one item, with all its questions: some models answer them together, in one prompt, so that
an answer may depend on the other questions. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, Generation, Split, UpstreamCall
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging, listing, listing_display, reading


class SystemOne(listing.Listing):
    """The dialect of POST `/v1/systemone`."""

    name = "sglang-systemone"
    routes = (("POST", "/v1/systemone"),)
    display = listing_display.ListDisplay(("state", "questions"), listing_display.of_answers)

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        question = {"type": "score", "criteria": ["0", "1"]}
        named = {"model": model} if model else {}
        return ({**named, "state": ".", "questions": {".": question}},)

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        if not body.get("state") or not body.get("model"):
            raise Refused(Reason.MALFORMED)
        if not isinstance(body.get("questions"), dict) or not body["questions"]:
            raise Refused(Reason.MALFORMED)
        reading.refuse_images(body)
        return ()

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        if judging.is_error(answer):
            raise Refused(Reason.ERROR)
        answers = answer.get("answers") if isinstance(answer, dict) else None
        if not isinstance(answers, dict) or list(answers) != list(call.body["questions"]):
            raise Refused(Reason.UNREADABLE)
        return Split((Generation(0, judging.dump(answer), 0),))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        return samples[0][0]


DIALECT = SystemOne()

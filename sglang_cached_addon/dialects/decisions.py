"""SGLang's `/v1/decisions` and `/v1/systemone`: answers to questions about an input, by the
probabilities of their options.

A call is one item, with all its questions: some models answer them together, in one prompt, so that
an answer may depend on the other questions. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, Generation, Split, UpstreamCall
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging, listing, reading


class _Questions(listing.Listing):
    """Either of both."""

    given: tuple[str, ...]
    """The fields that a call must have."""

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        if any(not body.get(name) for name in self.given):
            raise Refused(Reason.MALFORMED)
        if reading.given(body, ("images",)) and _are_elsewhere(body["images"]):
            raise Refused(Reason.MEDIA)
        return ()

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        if judging.is_error(answer):
            raise Refused(Reason.ERROR)
        answers = answer.get("answers") if isinstance(answer, dict) else None
        if not isinstance(answers, dict) or len(answers) != len(call.body["questions"]):
            raise Refused(Reason.UNREADABLE)
        return Split((Generation(0, judging.dump(answer), 0),))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        return samples[0][0]


class Decisions(_Questions):
    """The dialect of POST `/v1/decisions`."""

    name = "sglang-decisions"
    routes = (("POST", "/v1/decisions"),)
    given = ("input", "questions")

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        question = {"id": ".", "type": "score", "question": ".", "levels": ["0", "1"]}
        named = {"model": model} if model else {}
        return ({**named, "input": ".", "questions": [question]},)


class SystemOne(_Questions):
    """The dialect of POST `/v1/systemone`."""

    name = "sglang-systemone"
    routes = (("POST", "/v1/systemone"),)
    given = ("state", "questions", "model")

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        question = {"type": "score", "criteria": ["0", "1"]}
        named = {"model": model} if model else {}
        return ({**named, "state": ".", "questions": {".": question}},)


def _are_elsewhere(images: Any) -> bool:
    """Whether the server fetches any of the images."""
    urls = [image.get("url") if isinstance(image, dict) else image for image in images]
    return any(not isinstance(url, str) or reading.is_elsewhere(url) for url in urls)


DECISIONS, SYSTEMONE = Decisions(), SystemOne()

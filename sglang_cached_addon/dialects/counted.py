"""What dialects do alike whose answer to a list tells only what all of it has used.

Pure. A sample is the answer to one row, with its own usage.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Generation, Mint, Split, UpstreamCall
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging, listing, prompt_tokens


class Counted(listing.Listing):
    """The dialect of such an API."""

    @abstractmethod
    def inputs(self, body: dict[str, Any]) -> list[Any]:
        """What a body for a list has of each row: texts, lists of ids, or what nobody can count."""

    @abstractmethod
    def rows(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """For each row, the members of an answer as they are in the answer to it alone; what is
        kept otherwise than it came is changed in place. Raises `Refused`."""

    @abstractmethod
    def joined(self, call: Call, answers: Iterable[dict[str, Any]]) -> dict[str, list[bytes]]:
        """The members that have the rows in the answer to a call, each value in JSON; `answers` are
        those to its rows, one at a time."""

    def refusal(self, answer: dict[str, Any]) -> Reason | None:
        """Why an answer is not stored, as far as it tells."""
        return None

    def asks_once(self, call: Call, server: Server) -> bool:
        # What each row has used has to be known, as it is used again.
        return server.engine == SGLANG or prompt_tokens.are_ids(self.inputs(call.body))

    # As `Dialect`

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> UpstreamCall:
        sent = super().trim(call, shortfalls, mint, server)
        if server.engine != SGLANG or not call.batched or sent.total == 1:
            return sent
        inputs = self.inputs(sent.body)
        is_text = all(isinstance(each, str) for each in inputs)
        return replace(sent, texts=tuple(inputs)) if is_text else sent

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        if not isinstance(answer, dict) or judging.is_error(answer):
            raise Refused(Reason.ERROR if judging.is_error(answer) else Reason.UNREADABLE)
        rows, refusal = self.rows(answer), self.refusal(answer)
        if not call.batched:
            return Split((Generation(0, judging.dump(answer), 0),), refusal)
        if len(rows) != sent.total:
            raise Refused(Reason.UNREADABLE)
        usages, is_exact = prompt_tokens.share(answer.get("usage"), sent, self.inputs(sent.body))
        parts = listing.first_of_each(sent.order, zip(rows, usages, strict=True))
        return Split(
            tuple(Generation(item, _sample(answer, row, own), 0) for item, (row, own) in parts),
            refusal or (None if is_exact else Reason.SHARED_USAGE),
        )

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        kept, total = listing.spread(call, samples), prompt_tokens.Total()

        def answers() -> Iterator[dict[str, Any]]:
            for sample in kept:
                answer = orjson.loads(sample)
                total.add(answer.get("usage"))
                yield answer

        lists, envelope = self.joined(call, answers()), orjson.loads(kept[0])
        used = {"usage": total.usage} if "usage" in envelope else {}
        return listing.together({**envelope, **used}, lists)


def _sample(answer: dict[str, Any], row: dict[str, Any], usage: Any) -> bytes:
    """The answer to one row."""
    used = {"usage": usage} if "usage" in answer else {}
    return judging.dump({**answer, **row, **used})


def in_order(rows: Any) -> list[dict[str, Any]]:
    """Rows that have an `index` each, in their order. Raises `Refused`."""
    if not isinstance(rows, list) or not rows:
        raise Refused(Reason.UNREADABLE)
    if not all(isinstance(row, dict) and type(row.get("index")) is int for row in rows):
        raise Refused(Reason.UNREADABLE)
    by_index = {row["index"]: row for row in rows}
    if by_index.keys() != set(range(len(rows))):
        raise Refused(Reason.UNREADABLE)
    return [by_index[k] for k in range(len(rows))]

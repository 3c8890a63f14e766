"""SGLang's `/v1/score`: how likely each label is behind a query and an item.

A sample is the answer to one item. Answers of a server that puts all items into one sequence
(`--enable-mis`) are not stored: what they tell is of all together. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sglang_cached_addon.core.call import Call, Split, UpstreamCall
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import counted, judging, listing, listing_display
from sglang_cached_addon.dialects.display import listed, members

# Lists that are one value, whatever the number of items.
_SHARED = ("query", "label_token_ids", "query_embed_overrides")

_PER_ROW = ("items", "label_token_ids", "item_embed_overrides")

# With these the tokens of an item are put together otherwise than its text would be.
_UNCOUNTED = ("query_embed_overrides", "item_embed_overrides", "score_extraction_token")

_LISTS = ("scores", "pooled_hidden_states", "token_logprobs")


def _scores(answer: Any) -> listing_display.Rows:
    rows = listed(members(answer).get("scores"))
    return [(None, listing_display.numbers(scores)) for scores in rows]


class Score(counted.Counted):
    """The dialect of POST `/v1/score`."""

    name = "sglang-score"
    routes = (("POST", "/v1/score"),)
    display = listing_display.ListDisplay(("query", "items"), _scores)

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        # SGLang answers no items with no scores.
        named = {"model": model} if model else {}
        return ({**named, "query": ".", "items": [], "label_token_ids": [0]},)

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        items, labels = body.get("items"), body.get("label_token_ids")
        count = listing.count_of(items)
        if isinstance(items, list) and count is None:
            raise Refused(Reason.MALFORMED)  # ids are those of one item, in a list
        is_own = isinstance(labels, list) and bool(labels) and isinstance(labels[0], list)
        shared = [name for name in _SHARED if not (name == "label_token_ids" and is_own)]
        return listing.columns_of(body, count, _PER_ROW, shared)

    def inputs(self, body: dict[str, Any]) -> list[Any]:
        query, items = body.get("query"), body["items"]
        if any(body.get(name) is not None for name in _UNCOUNTED):
            return [None] * len(items)
        if isinstance(items[0], str) and isinstance(query or "", str):
            query = query or ""
            return [item + query if body.get("item_first") else query + item for item in items]
        if isinstance(items[0], list) and isinstance(query or [], list):
            return [[*(query or []), *item] for item in items]
        return [None] * len(items)

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        split = super().split(call, sent, answer)
        return replace(split, refusal=Reason.INSEPARABLE) if sent.server.fuses_scores else split

    def rows(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        lists = {name: answer.get(name) for name in _LISTS}
        scores = lists["scores"]
        if not isinstance(scores, list) or not scores:
            raise Refused(Reason.UNREADABLE)
        if any(not isinstance(v, list) or len(v) != len(scores) for v in lists.values() if v):
            raise Refused(Reason.UNREADABLE)
        told = {name: value for name, value in lists.items() if value}
        return [{name: [value[k]] for name, value in told.items()} for k in range(len(scores))]

    def joined(self, call: Call, answers: Iterable[dict[str, Any]]) -> dict[str, list[bytes]]:
        lists: dict[str, list[bytes]] = {}
        for answer in answers:
            for name in _LISTS:
                if values := answer.get(name):
                    lists.setdefault(name, []).extend(map(judging.dump, values))
        return lists


DIALECT = Score()

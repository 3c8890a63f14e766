"""SGLang's `/v1/tokenize` and `/v1/detokenize`, and the same without `/v1`: texts to token ids, and
back.

An answer has nothing but what its tokenizer makes of each row. What it makes of a whole chat is
one item. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Generation, Split, UpstreamCall
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging, listing, listing_display, reading
from sglang_cached_addon.dialects.display import listed, members, written


def _tokens(answer: Any) -> listing_display.Rows:
    found = listed(members(answer).get("tokens"))
    rows = found if found and isinstance(found[0], list) else [found]
    return [(None, listing_display.numbers(ids, "tokens")) for ids in rows]


def _texts(answer: Any) -> listing_display.Rows:
    found = members(answer).get("text")
    return [(None, written(text)) for text in (found if isinstance(found, list) else [found])]


class _Tokens(listing.Listing):
    """Either of both."""

    told: tuple[str, ...]
    """The members of an answer that have a value for each of them."""

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        if not isinstance(answer, dict) or judging.is_error(answer):
            raise Refused(Reason.ERROR if judging.is_error(answer) else Reason.UNREADABLE)
        if not call.batched:
            if any(name not in answer for name in self.told):
                raise Refused(Reason.UNREADABLE)
            return Split((Generation(0, judging.dump(answer), 0),))
        lists = [answer.get(name) for name in self.told]
        if not all(isinstance(each, list) and len(each) == sent.total for each in lists):
            raise Refused(Reason.UNREADABLE)
        rows = (dict(zip(self.told, row, strict=True)) for row in zip(*lists, strict=True))
        return Split(
            tuple(
                Generation(item, judging.dump({**answer, **row}), 0)
                for item, row in listing.first_of_each(sent.order, rows)
            )
        )

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        if not call.batched:
            return samples[0][0]
        kept = listing.spread(call, samples)
        lists: dict[str, list[bytes]] = {name: [] for name in self.told}
        for answer in map(orjson.loads, kept):
            for name in self.told:
                lists[name].append(judging.dump(answer[name]))
        return listing.together(orjson.loads(kept[0]), lists)


class Tokenize(_Tokens):
    """The dialect of POST `/v1/tokenize` and `/tokenize`."""

    name = "sglang-tokenize"
    routes = (("POST", "/v1/tokenize"), ("POST", "/tokenize"))
    told = ("tokens", "count")
    display = listing_display.ListDisplay(("prompt", "messages"), _tokens)

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return ({**({"model": model} if model else {}), "prompt": ""},)

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        prompt, messages = body.get("prompt"), body.get("messages")
        if isinstance(messages, list) and prompt is None:
            reading.refuse_media(messages)
            return ()
        if messages is not None:
            raise Refused(Reason.MALFORMED)
        count = listing.count_of(prompt, ids=False)
        return listing.columns_of(body, count, ("prompt",))


class Detokenize(_Tokens):
    """The dialect of POST `/v1/detokenize` and `/detokenize`."""

    name = "sglang-detokenize"
    routes = (("POST", "/v1/detokenize"), ("POST", "/detokenize"))
    told = ("text",)
    display = listing_display.ListDisplay(("tokens",), _texts)

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return ({**({"model": model} if model else {}), "tokens": []},)

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        count = listing.count_of(body.get("tokens"), texts=False)
        return listing.columns_of(body, count, ("tokens",))


TOKENIZE, DETOKENIZE = Tokenize(), Detokenize()

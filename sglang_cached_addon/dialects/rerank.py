"""SGLang's `/v1/rerank`: the score of each document for a query, the best ones first.

A sample is what an answer says of one document, but for the document. The order, `index`, `top_n`
and the documents are each client's own. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Generation, Mint, Split, UpstreamCall
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging, listing, listing_display, reading
from sglang_cached_addon.dialects.display import written


def _said(row: dict[str, Any]) -> str:
    return f"score {written(row.get('score'))}"


class Rerank(listing.Listing):
    """The dialect of POST and PUT `/v1/rerank`."""

    name = "sglang-rerank"
    routes = (("POST", "/v1/rerank"), ("PUT", "/v1/rerank"))
    is_verbatim = False
    display = listing_display.ListDisplay(("query", "documents"), listing_display.of_list(_said))

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return ({**({"model": model} if model else {}), "query": ".", "documents": ["."]},)

    def content(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().content(body).items()
            if name not in ("top_n", "return_documents")
        }

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        documents, query = body.get("documents"), body.get("query")
        top = body.get("top_n")
        is_plain = type(_returns(body)) is bool and (top is None or (type(top) is int and top > 0))
        if not is_plain or not isinstance(documents, list) or not documents:
            raise Refused(Reason.MALFORMED)
        if not all(isinstance(each, str | list) for each in (query, *documents)):
            raise Refused(Reason.MALFORMED)
        parts = [part for each in (query, *documents) if isinstance(each, list) for part in each]
        if any(_is_elsewhere(part) for part in parts):
            raise Refused(Reason.MEDIA)
        if _returns(body) and any(isinstance(each, list) for each in documents):
            raise Refused(Reason.MALFORMED)  # SGLang gives back texts alone
        return listing.columns_of(body, len(documents), ("documents",), ("query",))

    def read(self, body: dict[str, Any]) -> Call:
        return replace(super().read(body), batched=False)  # no answer has the order of its call

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> UpstreamCall:
        sent = super().trim(call, shortfalls, mint, server)
        top = sent.body.get("top_n")
        if top is None or top >= call.size or server.engine != SGLANG:
            return sent  # what others answer is not read, so that they are not asked twice
        body = {name: value for name, value in sent.body.items() if name != "top_n"}
        return replace(sent, body=body, is_wider=True)

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        if judging.is_error(answer):
            raise Refused(Reason.ERROR)
        if not isinstance(answer, list) or len(answer) != sent.total:
            raise Refused(Reason.UNREADABLE)
        rows: dict[int, dict[str, Any]] = {}
        refusal = None
        for row in answer:
            if not isinstance(row, dict) or type(row.get("score")) is not float:
                raise Refused(Reason.UNREADABLE)
            rows[row.get("index", -1)] = {n: v for n, v in row.items() if n != "document"}
            refusal = refusal or _refusal(row.get("meta_info"))
        if rows.keys() != set(range(sent.total)):
            raise Refused(Reason.UNREADABLE)
        ordered = [{**rows[k], "index": 0} for k in range(sent.total)]
        parts = listing.first_of_each(sent.order, ordered)
        generations = [Generation(item, judging.dump(row), 0) for item, row in parts]
        metas = [row.get("meta_info") for row in ordered]
        return Split(tuple(generations), refusal, judging.weight_versions(metas))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        # A row at a time, so that nobody waits while a long answer is written.
        kept = listing.spread(call, samples)
        scores = [orjson.loads(sample)["score"] for sample in kept]
        # Equal ones stay in their order.
        order = sorted(range(len(kept)), key=scores.__getitem__, reverse=True)
        documents = call.body["documents"] if _returns(call.body) else None
        answer = BytesIO()
        best = order[: call.body.get("top_n")]
        listing.write_list(answer, (_shown(kept[row], row, documents) for row in best))
        return answer.getvalue()


def _shown(sample: bytes, index: int, documents: Sequence[str] | None) -> bytes:
    """What an answer says of a document, as SGLang orders and writes it."""
    row = orjson.loads(sample)
    document = {} if documents is None else {"document": documents[index]}
    return _written({"score": row["score"], **document, **row, "index": index}).encode()


_written = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _refusal(meta: Any) -> Reason | None:
    """Why what is said of a document is not stored; some models tell nothing of how they ended."""
    if not isinstance(meta, dict):
        return None
    finish = meta.get("finish_reason")
    kind = finish.get("type") if isinstance(finish, dict) else None
    return judging.finish_refusal(kind) or judging.weights_refusal(meta)


def _returns(body: dict[str, Any]) -> Any:
    return body.get("return_documents", True)


def _is_elsewhere(part: Any) -> bool:
    """Whether a part of a query or a document is fetched by the server."""
    if not isinstance(part, dict):
        return True
    return any(reading.is_elsewhere(v) for n, v in part.items() if n not in ("type", "text"))


DIALECT = Rerank()

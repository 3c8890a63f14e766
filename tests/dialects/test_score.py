"""SGLang's `/v1/score`."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.score import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import item, minter, refusal
from tests.tables import each

TEXTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    # a call, and the texts whose tokens are to be counted for it
    ({"query": "q", "items": ["a", "b"]}, ("qa", "qb")),
    ({"query": "q", "items": ["a", "b"], "item_first": True}, ("aq", "bq")),
    ({"items": ["a", "b"]}, ("a", "b")),
    ({"query": "q", "items": ["a"]}, ()),
    ({"query": "q", "items": "a"}, ()),
    ({"query": [1], "items": [[2], [3, 4]]}, ()),
    ({"query": [1], "items": ["a", "b"]}, ()),
    ({"query": "q", "items": ["a", "b"], "score_extraction_token": "x"}, ()),
    ({"query": "q", "items": ["a", "b"], "query_embed_overrides": [[0.5]]}, ()),
]


@each(("body", "texts"), TEXTS)
def test_texts_to_count(body: dict[str, Any], texts: tuple[str, ...]) -> None:
    """What the server scores of an item is its text together with the query's; where that is not
    certain, nothing is counted."""
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, [1] * len(call.items), minter(), Server(SGLANG))
    assert sent.texts == texts
    assert not DIALECT.trim(call, [1] * len(call.items), minter()).texts


def test_own_labels() -> None:
    """Labels of all items are those of each, and so are labels of its own."""
    shared = DIALECT.read({"query": "q", "items": ["a", "b"], "label_token_ids": [1, 2]})
    own = DIALECT.read({"query": "q", "items": ["a", "b"], "label_token_ids": [[1, 2], [3]]})
    assert own.items[0] == shared.items[0] and own.items[1] != shared.items[1]
    sent = DIALECT.trim(own, (0, 1), minter())
    assert (sent.body["items"], sent.body["label_token_ids"]) == (["b"], [[3]])
    alone = {"query": "q", "items": "a", "label_token_ids": [1, 2]}
    assert item(DIALECT, alone) == shared.items[0]
    assert refusal(DIALECT, {**alone, "items": [1, 2]}) is Reason.MALFORMED


def test_items_in_one_sequence() -> None:
    """What a server tells that puts all items into one sequence is not stored."""
    (pair,) = corpus("score-ids")
    call = DIALECT.read(json.loads(pair["request"]["body"]))
    for fuses, reason in ((False, None), (True, Reason.INSEPARABLE)):
        server = Server(SGLANG, fuses_scores=fuses)
        sent = DIALECT.trim(call, (1, 1), minter(), server)
        split = DIALECT.split(call, sent, json.loads(pair["response"]["body"]))
        assert split.refusal is reason

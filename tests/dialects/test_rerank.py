"""SGLang's `/v1/rerank`."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.rerank import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import minter, refusal
from tests.tables import each

BODY: dict[str, Any] = {"query": "q", "documents": ["a", "b", "c"]}


def samples(scores: str) -> list[list[bytes]]:
    """What is kept of documents with these scores, a digit each."""
    return [[b'{"score":%b.5,"index":0,"meta_info":null}' % s.encode()] for s in scores]


def written(scores: str, **more: Any) -> Any:
    call = DIALECT.read({**BODY, **more})
    return json.loads(DIALECT.write(call, samples(scores)))


def test_key() -> None:
    """A document has one key, with its query and instruction, in whatever list it stands, and
    however the answer is to be written."""
    whole = DIALECT.read(BODY)
    assert len(set(whole.items)) == 3
    for more in ({"top_n": 1}, {"return_documents": False}, {"top_n": None}):
        assert DIALECT.read({**BODY, **more}).items == whole.items
    assert DIALECT.read({**BODY, "documents": ["c", "a", "c"]}).items == (
        whole.items[2],
        whole.items[0],
    )
    for name in ("query", "instruct", "model", "not_yet_invented"):
        assert not set(DIALECT.read({**BODY, name: "x"}).items) & set(whole.items), name


def test_answers_are_written_anew() -> None:
    """The best come first, equal ones in the order of the call; how many there are, and whether
    with their documents, is each client's own."""
    assert [(row["index"], row["document"]) for row in written("131")] == [
        (1, "b"), (0, "a"), (2, "c"),
    ]  # fmt: skip
    assert [row["index"] for row in written("123", top_n=2)] == [2, 1]
    assert [row["index"] for row in written("123", top_n=9)] == [2, 1, 0]
    assert all("document" not in row for row in written("123", return_documents=False))
    repeated = written("21", documents=["b", "a", "b"])
    assert [(row["index"], row["score"]) for row in repeated] == [(0, 2.5), (2, 2.5), (1, 1.5)]


def test_all_are_asked_for() -> None:
    """A client that wants the best ones is told them of all: the scores of the others are asked
    for, too."""
    for top, is_wider in ((None, False), (1, True), (3, False), (4, False)):
        call = DIALECT.read({**BODY, "top_n": top})
        sent = DIALECT.trim(call, (1, 1, 1), minter(), Server(SGLANG))
        assert sent.is_wider is is_wider
        assert ("top_n" in sent.body) is not is_wider
        assert DIALECT.trim(call, (1, 1, 1), minter()).body == call.body
    some = DIALECT.trim(DIALECT.read({**BODY, "top_n": 1}), (0, 1, 1), minter(), Server(SGLANG))
    assert some.body == {"query": "q", "documents": ["b", "c"]} and some.order == (1, 2)


def test_a_recorded_answer_serves_others() -> None:
    """The scores of three documents are those of the best two, as SGLang told."""
    known: dict[bytes, bytes] = {}
    by_name = {pair["name"]: pair for pair in corpus("rerank")}
    for name in ("rerank", "rerank-top"):
        pair = by_name[name]
        call, answer = DIALECT.read(json.loads(pair["request"]["body"])), pair["response"]["body"]
        if name == "rerank":
            sent = DIALECT.trim(call, (1, 1, 1), minter())
            split = DIALECT.split(call, sent, json.loads(answer))
            known = {call.items[one.item]: one.answer for one in split.generations}
            assert split.versions == {"default"}
        made = json.loads(DIALECT.write(call, [[known[item]] for item in call.items]))
        assert [row["index"] for row in made] == [row["index"] for row in json.loads(answer)]
        assert [row.keys() for row in made] == [row.keys() for row in json.loads(answer)]


REFUSED: list[tuple[dict[str, Any], Reason]] = [
    ({"documents": "a"}, Reason.MALFORMED), ({"documents": []}, Reason.MALFORMED),
    ({"documents": ["a", 1]}, Reason.MALFORMED), ({"query": None}, Reason.MALFORMED),
    ({"top_n": 0}, Reason.MALFORMED), ({"top_n": True}, Reason.MALFORMED),
    ({"top_n": "1"}, Reason.MALFORMED), ({"return_documents": None}, Reason.MALFORMED),
    ({"documents": [[{"type": "text", "text": "a"}]]}, Reason.MALFORMED),
    ({"query": [{"type": "image_url", "image_url": {"url": "http://x/a.png"}}]}, Reason.MEDIA),
    ({"query": [{"type": "text", "text": "a"}, "b"]}, Reason.MEDIA),
    ({"weights": [1, 2, 3]}, Reason.INSEPARABLE),
]  # fmt: skip


@each(("fields", "reason"), REFUSED)
def test_refusals(fields: dict[str, Any], reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(DIALECT, {**BODY, **fields}) is reason


def test_pictures() -> None:
    """Pictures in the call are content, where the documents are not to be given back."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {"query": [picture], "documents": [[picture], "b"], "return_documents": False}
    assert len(DIALECT.read(body).items) == 2


ODD: list[Any] = [
    [], [{}], [{"score": 1.5, "index": 0}], [{"score": 1, "index": k} for k in (0, 1, 2)],
    [{"score": 1.5, "index": 0}] * 3, {"results": []},
]  # fmt: skip


@each("answer", ODD)
def test_unreadable(answer: Any) -> None:
    """What is not a score for each document is not taken apart."""
    call = DIALECT.read(BODY)
    sent = DIALECT.trim(call, (1, 1, 1), minter())
    try:
        DIALECT.split(call, sent, answer)
    except Exception as refused:
        assert refused.args == (Reason.UNREADABLE,)
    else:
        raise AssertionError

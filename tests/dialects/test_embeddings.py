"""OpenAI's `/v1/embeddings`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG, VLLM
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects import embeddings
from tests.conftest import corpus
from tests.dialects.bodies import counts, item, minter, refusal
from tests.tables import each

DIALECT = embeddings.DIALECT
PICTURE = "data:image/png;base64,AAAA"


def recorded(name: str) -> tuple[dict[str, Any], bytes]:
    """A recorded call, and its answer."""
    pair = next(pair for pair in corpus(name) if pair["name"] == name)
    return json.loads(pair["request"]["body"]), pair["response"]["body"].encode()


def pools(name: str) -> dict[bytes, bytes]:
    """The samples of a recorded answer by what they are of."""
    body, answer = recorded(name)
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, [1] * len(call.items), minter(), Server(SGLANG))
    sent = replace(sent, tokens=tuple(counts()[text] for text in sent.texts))
    split = DIALECT.split(call, sent, json.loads(answer))
    assert split.refusal is None
    return {call.items[one.item]: one.answer for one in split.generations}


def written(name: str, *sources: str) -> tuple[bytes, bytes]:
    """The answer to a recorded call, made of the samples of others, and that which was recorded."""
    body, answer = recorded(name)
    call, known = DIALECT.read(body), {}
    for source in sources:
        known |= pools(source)
    return DIALECT.write(call, [[known[item]] for item in call.items]), answer


@each("numbers", ["embeddings-small", "embeddings-list"])
def test_one_vector_in_both_forms(numbers: str) -> None:
    """What came as numbers is written in base64 as SGLang has written it, and the reverse, byte for
    byte. What is kept of both is the same."""
    for asked, stored in ((numbers, f"{numbers}-base64"), (f"{numbers}-base64", numbers)):
        made, answer = written(asked, stored)
        assert made == answer, (asked, stored)
    assert pools(numbers) == pools(f"{numbers}-base64")
    for kept in pools(numbers).values():
        (row,) = json.loads(kept)["data"]
        assert len(row["embedding"]) == 344  # of 64 numbers, with 4 bytes each


def test_a_part_of_a_list() -> None:
    """Samples of one list serve a lone input of it, with the usage that it has alone."""
    made, answer = written("embeddings-one", "embeddings-list")
    assert {**json.loads(made), "data": 0} == {**json.loads(answer), "data": 0}


def test_usage_that_nothing_tells() -> None:
    """Where nobody knows what each text of a list has, or what is known does not come to what the
    answer says, the answer is not stored; put together with others it is right all the same."""
    body, answer = recorded("embeddings-list")
    call = DIALECT.read(body)
    for server, tokens in (
        (Server(VLLM), ()), (Server(), ()), (Server(SGLANG), ()), (Server(SGLANG), (5, 4)),
        (Server(SGLANG), (5, 4, 8)),
    ):  # fmt: skip
        sent = replace(DIALECT.trim(call, (1, 1, 1), minter(), server), tokens=tokens)
        assert bool(sent.texts) is (server.engine == SGLANG)
        split = DIALECT.split(call, sent, json.loads(answer))
        assert split.refusal is Reason.SHARED_USAGE
        assert DIALECT.write(call, [[one.answer] for one in split.generations]) == answer


def test_ids_tell_their_tokens() -> None:
    """Of lists of ids, each has as many tokens as ids: nobody is asked."""
    body, answer = recorded("embeddings-lists-of-ids")
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, (1, 1), minter(), Server(SGLANG))
    assert not sent.texts
    split = DIALECT.split(call, sent, json.loads(answer))
    assert split.refusal is None
    usages = [json.loads(one.answer)["usage"]["prompt_tokens"] for one in split.generations]
    assert usages == [3, 1]


def test_forms_are_not_in_the_key() -> None:
    """Both forms of a vector have one key, and so has a call that names neither; another form has
    a key of its own, so that the server can refuse it. The number of dimensions is in the key."""
    body = {"input": "a"}
    forms = [{**body, "encoding_format": form} for form in ("float", "base64")]
    assert {item(DIALECT, each) for each in (body, *forms)} == {item(DIALECT, body)}
    others = [{**body, "encoding_format": form} for form in ("int8", None, 1)]
    others += [{**body, "dimensions": 8}, {**body, "dimensions": 9}]
    assert len({item(DIALECT, each) for each in (body, *others)}) == 6


def test_pictures() -> None:
    """A picture in the call is content; one that the server would fetch may change. A list of such
    inputs is one item, as nothing tells the tokens of each."""
    here, there = {"text": "a", "image": PICTURE}, {"image": "http://example.org/a.png"}
    alone = DIALECT.read({"input": [here]})
    assert alone.batched and len(alone.items) == 1
    assert item(DIALECT, {"input": [here]}) != item(DIALECT, {"input": [{**here, "text": "b"}]})
    both = DIALECT.read({"input": [here, {"text": "b"}]})
    assert len(both.items) == 1 and not both.batched
    for given in ([there], [here, there], [{"text": "a", "video": "/tmp/a.mp4"}]):
        assert refusal(DIALECT, {"input": given}) is Reason.MEDIA
    assert refusal(DIALECT, {"input": [here, "b"]}) is Reason.MALFORMED


def test_odd_vectors() -> None:
    """A text that is no base64 of numbers is not stored; what is not of float32 is kept whole."""
    body, answer = recorded("embeddings-one")
    call, said = DIALECT.read(body), json.loads(answer)
    sent = DIALECT.trim(call, (1,), minter())
    said["data"][0]["embedding"] = [0.1, 0.2]
    (kept,) = DIALECT.split(call, sent, said).generations
    assert json.loads(DIALECT.write(call, [[kept.answer]])) == json.loads(kept.answer) == said
    said["data"][0]["embedding"] = "no base64"
    try:
        DIALECT.split(call, sent, said)
    except Exception as refused:
        assert refused.args == (Reason.UNREADABLE,)
    else:
        raise AssertionError

"""SGLang's native `/encode` and `/classify`."""

from __future__ import annotations

import json

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.encode import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import item, minter, refusal

PICTURE = "data:image/png;base64,AAAA"
PAIRS = {"text": [["a", "b"], ["c", "d"]], "is_cross_encoder_request": True}


def test_pairs() -> None:
    """A pair is an input, and only where the call says that its lists are pairs."""
    call = DIALECT.read(PAIRS)
    assert call.batched and len(call.items) == 2
    assert call.items[0] == item(DIALECT, {**PAIRS, "text": [["a", "b"]]})
    for text in ("a", ["a", "b"], [["a"]], [["a", "b", "c"]], [["a", 1]], []):
        assert refusal(DIALECT, {**PAIRS, "text": text}) is Reason.MALFORMED, text
    assert refusal(DIALECT, {"text": PAIRS["text"]}) is Reason.MALFORMED
    assert refusal(DIALECT, {"text": "a", "input_ids": [1]}) is Reason.MALFORMED


def test_pictures_of_a_list() -> None:
    """Each input of a list has a picture of its own, or all have one; what one alone is read by
    otherwise is not taken apart."""
    listed = {"text": ["a", "b"], "image_data": [PICTURE, None]}
    first, second = DIALECT.read(listed).items
    assert first == item(DIALECT, {"text": "a", "image_data": PICTURE})
    assert second == item(DIALECT, {"text": "b", "image_data": None})
    sent = DIALECT.trim(DIALECT.read(listed), (0, 1), minter())
    assert sent.body == {"text": ["b"], "image_data": [None]}
    assert refusal(DIALECT, {**listed, "modalities": ["image"]}) is Reason.INSEPARABLE
    assert refusal(DIALECT, {**listed, "image_data": [PICTURE]}) is Reason.MALFORMED
    assert refusal(DIALECT, {"text": "a", "image_data": "/tmp/a.png"}) is Reason.MEDIA


def test_ids_of_clients() -> None:
    """Each call goes upstream under ids of its own, and its client sees those that it gave."""
    (pair,) = corpus("encode-rids")
    call = DIALECT.read(json.loads(pair["request"]["body"]))
    sent = DIALECT.trim(call, (1, 1), minter())
    assert call.rids == ("mine", "yours")
    assert sent.body["rid"] == list(sent.rids.values()) and list(sent.rids) == ["mine", "yours"]
    samples = [
        [one.answer]
        for one in DIALECT.split(call, sent, json.loads(pair["response"]["body"])).generations
    ]
    swapped = DIALECT.read({**call.body, "rid": ["x", "y"]})
    ids = [one["meta_info"]["id"] for one in json.loads(DIALECT.write(swapped, samples))]
    assert ids == ["x", "y"]


def test_aborted_and_mixed_answers_are_not_stored() -> None:
    """What broke off, or is of two sets of weights, is nobody's answer."""
    (pair,) = corpus("encode-one")
    call = DIALECT.read({"text": "a"})
    sent = DIALECT.trim(call, (1,), minter())
    for change, reason in (
        ({}, None),
        ({"finish_reason": {"type": "abort", "message": "no"}}, Reason.ABORT),
        ({"finish_reason": None}, Reason.UNFINISHED),
        ({"weight_versions": [{"version": "1"}, {"version": "2"}]}, Reason.MIXED_WEIGHTS),
    ):
        answer = json.loads(pair["response"]["body"])
        answer["meta_info"] |= change
        split = DIALECT.split(call, sent, answer)
        assert split.refusal is reason
        assert split.versions == {"default"}

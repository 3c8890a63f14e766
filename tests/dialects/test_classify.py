"""OpenAI's `/v1/classify`."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.classify import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import minter


def test_what_failed_is_not_stored() -> None:
    """SGLang answers a 200 with a class that no model has where it cannot tell one."""
    (pair,) = [pair for pair in corpus("classify-one") if pair["name"] == "classify-one"]
    call = DIALECT.read(json.loads(pair["request"]["body"]))
    sent, answer = DIALECT.trim(call, (1,), minter()), json.loads(pair["response"]["body"])
    failed: dict[str, Any] = {"label": "Default", "probs": [1.0], "num_classes": 1}
    for change, reason in (
        ({}, None), (failed, Reason.ERROR), ({"label": "Default"}, None),
        ({"probs": [1.0], "num_classes": 1}, None),
    ):  # fmt: skip
        answer["data"] = [{**answer["data"][0], **change}]
        assert DIALECT.split(call, sent, answer).refusal is reason
        answer = json.loads(pair["response"]["body"])

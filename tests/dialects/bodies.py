"""What tests do with request bodies of any dialect."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import pytest

from sglang_cached_addon.core.call import Mint
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.base import Dialect
from tests.conftest import corpus


def minted(number: int) -> str:
    return f"{number:032x}"


def minter() -> Mint:
    """Gives ids that are numbered from 1 on."""
    numbers = itertools.count(1)
    return lambda: minted(next(numbers))


@functools.cache
def counts() -> dict[str, int]:
    """How many tokens texts of the recorded calls have, as SGLang told when they were recorded."""
    (pair,) = corpus("tokenize-texts")
    texts = json.loads(pair["request"]["body"])["prompt"]
    return dict(zip(texts, json.loads(pair["response"]["body"])["count"], strict=True))


def item(dialect: Dialect, body: dict[str, Any]) -> bytes:
    """The canonical content of a body with one prompt."""
    (content,) = dialect.read(body).items
    return content


def refusal(dialect: Dialect, body: dict[str, Any]) -> Reason:
    """Why a body is not looked up."""
    with pytest.raises(Refused) as caught:
        dialect.read(body)
    return caught.value.reason

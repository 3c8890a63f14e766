"""What `/cache/explain` is asked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sglang_cached_addon.admin.explained import WANTED, explained
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.explaining import Explanation
from tests.tables import each


class Heard:
    """Explains nothing, and keeps what it was asked."""

    async def explain(self, path: str, body: bytes, fields: Any) -> Explanation:
        if path == "/bad":
            raise ValueError("bad run")
        self.asked = (path, body, fields)
        return Explanation(Kind.BYPASS, Reason.ROUTE, "why")


ASKED: dict[str, tuple[dict[str, Any], tuple[str, bytes, Any]]] = {
    "an object": ({"path": "/x", "body": {"a": 1}}, ("/x", b'{"a":1}', ())),
    "its text": ({"path": "/x", "body": '{"a":1,"a":2}'}, ("/x", b'{"a":1,"a":2}', ())),
    "headers": (
        {"path": "/x", "body": None, "headers": {"A": "b"}},
        ("/x", b"null", ((b"A", b"b"),)),
    ),
}


@each("case", ASKED)
def test_asked(case: str) -> None:
    """The call is explained as its client would send it."""
    request, expected = ASKED[case]
    heard: Any = Heard()
    found = asyncio.run(explained(heard, json.dumps(request).encode()))
    assert heard.asked == expected
    assert (found["outcome"], found["reason"], found["text"]) == ("bypass", "route", "why")
    assert (found["key"], found["nearest"], found["run"]) == (None, [], None)


BAD = (
    b"", b"[]", b"{}", b'{"path":"/x"}', b'{"body":{}}', b'{"path":1,"body":{}}',
    b'{"path":"/x","body":{},"headers":[]}', b'{"path":"/x","body":{},"headers":{"a":1}}',
    b'{"path":"/x","body":{},"more":1}',
)  # fmt: skip


def test_not_understood() -> None:
    """What is no call is refused, with what is wanted."""
    heard: Any = Heard()
    for request in BAD:
        with pytest.raises(ValueError, match="takes") as e:
            asyncio.run(explained(heard, request))
        assert str(e.value) == WANTED
    with pytest.raises(ValueError, match="bad run"):
        asyncio.run(explained(heard, b'{"path":"/bad","body":{}}'))

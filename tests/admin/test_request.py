"""What is asked of the proxy's own routes."""

from __future__ import annotations

import pytest

from sglang_cached_addon.admin.request import Request
from sglang_cached_addon.catalog.query import BadQuery


def request(query: str = "", path: str = "/cache/runs/a/rewind", body: bytes = b"") -> Request:
    return Request("DELETE", path, query, body)


def test_names() -> None:
    """The name in a path is read, and that of a run has to be one."""
    assert (request().named, request().run) == ("a", "a")
    odd = request(path="/cache/entries/a@")
    assert odd.named == "a@"
    with pytest.raises(BadQuery):
        odd.run  # noqa: B018


def test_queries() -> None:
    """What a query says is read; what is not understood is refused."""
    assert request("text=a%26b+c&limit=").parameters == {"text": "a&b c", "limit": ""}
    assert (request("after=5.5").after, request().after) == (5.5, float("-inf"))
    for query, is_now in (("", False), ("now=true", True), ("now=false", False)):
        assert request(query).is_now is is_now
    for query, which in (("", "all"), ("model=other", "other"), ("model=a%2Fb", "a/b")):
        assert request(query).cleared == which
    for query, member in (
        ("a=1&a=2", "parameters"), ("after=x", "after"), ("before=1", "after"), ("now=1", "is_now"),
        ("now=true&x=1", "is_now"), ("model=", "cleared"), ("model=%61ll", "cleared"),
        ("model=a&model=b", "cleared"),
    ):  # fmt: skip
        with pytest.raises(BadQuery):
            getattr(request(query), member)


def test_fresh() -> None:
    """A run can only be wished to be fresh."""
    request(body=b'{"fresh":true}').check_fresh()
    for body in (b"", b"{}", b'{"fresh":1}', b'{"fresh":true,"x":1}', b"[]", b"x"):
        with pytest.raises(BadQuery):
            request(body=body).check_fresh()

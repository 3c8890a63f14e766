"""What may be looked up and what may be stored."""

from __future__ import annotations

import re

import pytest

from sglang_cached_addon.policy import REASONS, Reason, Refused, lookup_refusal, store_refusal

JSON = {b"content-type": b"application/json"}


@pytest.mark.parametrize(
    "value",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b"application/json;charset=utf-8",
        b" application/json ",
    ],
)
def test_json_is_looked_up(value: bytes) -> None:
    """An ordinary client would never get a hit."""
    assert lookup_refusal({b"content-type": value, b"user-agent": b"x", b"accept": b"*/*"}) is None


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, Reason.CONTENT_TYPE),
        ({b"content-type": b""}, Reason.CONTENT_TYPE),
        ({b"content-type": b"text/plain"}, Reason.CONTENT_TYPE),
        ({b"content-type": b"application/jsonl"}, Reason.CONTENT_TYPE),
        ({b"content-type": b"application/json-seq"}, Reason.CONTENT_TYPE),
        ({b"content-type": b"text/plain; x=application/json"}, Reason.CONTENT_TYPE),
        ({b"content-type": b"text/plain, application/json"}, Reason.CONTENT_TYPE),
        ({**JSON, b"content-encoding": b"gzip"}, Reason.ENCODED),
        ({**JSON, b"x-body-compressed": b"zstd"}, Reason.ENCODED),
        ({**JSON, b"x-sglext-return-input-ids": b"1"}, Reason.HEADER),
        ({**JSON, b"x-sglext-return-output-ids": b"1"}, Reason.HEADER),
        ({**JSON, b"x-sglext-ids-framed": b"1"}, Reason.HEADER),
        ({**JSON, b"origin": b"http://example.com"}, Reason.CROSS_ORIGIN),
    ],
)
def test_heads_that_are_not_looked_up(headers: dict[bytes, bytes], reason: Reason) -> None:
    """A hit would answer what SGLang reads differently or refuses, or under a wrong name."""
    assert lookup_refusal(headers) is reason


@pytest.mark.parametrize(
    "status", [100, 199, 201, 204, 206, 301, 304, 400, 401, 404, 429, 500, 503]
)
def test_other_statuses_are_not_stored(status: int) -> None:
    """An error would be repeated for ever."""
    assert store_refusal(status) is Reason.STATUS


def test_200_is_stored() -> None:
    """Nothing would ever be a hit."""
    assert store_refusal(200) is None


@pytest.mark.parametrize("reason", Reason)
def test_reason_is_a_token(reason: Reason) -> None:
    """A reason that has to be quoted would break the header and the counters' names."""
    assert re.fullmatch("[a-z][a-z0-9]*(-[a-z0-9]+)*", str(reason))


def test_refused_has_its_reason() -> None:
    """A bypass would not tell why."""
    assert Refused(Reason.BEAM).reason is Reason.BEAM
    assert str(Refused(Reason.BEAM)) == "beam"


@pytest.mark.parametrize("reason", Reason)
def test_reason_is_explained(reason: Reason) -> None:
    """A reason in a header could not be looked up."""
    assert REASONS[reason]

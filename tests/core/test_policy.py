"""What may be looked up and what may be stored."""

from __future__ import annotations

import re
from math import inf

from sglang_cached_addon.core.directives import Directives
from sglang_cached_addon.core.policy import (
    PLAIN,
    Mode,
    Reason,
    Refused,
    Terms,
    lookup_refusal,
    store_refusal,
    terms,
)
from tests.tables import each

JSON = {b"content-type": b"application/json"}


@each(
    "value",
    [
        b"application/json", b"Application/JSON", b"application/json; charset=utf-8",
        b"application/json;charset=utf-8", b" application/json ",
    ],
)  # fmt: skip
def test_json_is_looked_up(value: bytes) -> None:
    """The headers of ordinary clients are no reason against a look-up."""
    assert lookup_refusal({b"content-type": value, b"user-agent": b"x", b"accept": b"*/*"}) is None


@each("value", [b"", b"close", b"Keep-Alive, TE", b"Upgrade,HTTP2-Settings"])
def test_what_is_said_of_the_connection(value: bytes) -> None:
    """It says nothing of the call."""
    assert lookup_refusal({**JSON, b"connection": value}) is None


@each(
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
        ({**JSON, b"x-sglext-of-tomorrow": b"1"}, Reason.HEADER),
        ({**JSON, b"x-override-rid": b"1"}, Reason.HEADER),
        ({**JSON, b"connection": b"close, X-Model-Id"}, Reason.HEADER),
        ({**JSON, b"x-override-bootstrap-host": b"h"}, Reason.HEADER),
        ({**JSON, b"x-override-bootstrap-room": b"1"}, Reason.HEADER),
        ({**JSON, b"x-override-routed-dp-rank": b"1"}, Reason.HEADER),
        ({**JSON, b"x-override-disagg-prefill-dp-rank": b"1"}, Reason.HEADER),
        ({**JSON, b"x-override-of-tomorrow": b"1"}, Reason.HEADER),
        ({**JSON, b"origin": b"http://example.com"}, Reason.CROSS_ORIGIN),
    ],
)
def test_heads_that_are_not_looked_up(headers: dict[bytes, bytes], reason: Reason) -> None:
    """Headers that change what is asked or answered are a reason against a look-up."""
    assert lookup_refusal(headers) is reason


@each("status", [100, 199, 201, 204, 206, 301, 304, 400, 401, 404, 429, 500, 503])
def test_other_statuses_are_not_stored(status: int) -> None:
    """Only an answer with status 200 is stored."""
    assert store_refusal(status) is Reason.STATUS


def test_200_is_stored() -> None:
    """An answer with status 200 may be stored."""
    assert store_refusal(200) is None


@each("reason", Reason)
def test_reason_is_a_token(reason: Reason) -> None:
    """Each reason is a plain token."""
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9.]+)*", str(reason))


def test_refused_has_its_reason() -> None:
    """A refusal has its reason."""
    assert Refused(Reason.BEAM).reason is Reason.BEAM
    assert str(Refused(Reason.BEAM)) == "beam"


@each("reason", Reason)
def test_reason_is_explained(reason: Reason) -> None:
    """Each reason says what it means, and has a value of its own."""
    assert reason.meaning and Reason._value2member_map_[reason.value] is reason


NOW = 1000.0
ASKED = {
    "nothing": Directives(),
    "no-store": Directives(no_store=True),
    "no-cache": Directives(no_cache=True),
    "max-age=0": Directives(max_age=0),
    "max-age=60": Directives(max_age=60),
    "only-if-cached": Directives(only_if_cached=True),
    "no-cache, max-age=60": Directives(no_cache=True, max_age=60),
    "no-store, no-cache": Directives(no_store=True, no_cache=True),
    "no-store, max-age=60": Directives(no_store=True, max_age=60),
    "only-if-cached, no-cache": Directives(only_if_cached=True, no_cache=True),
    "only-if-cached, no-store": Directives(only_if_cached=True, no_store=True),
    "only-if-cached, max-age=60": Directives(only_if_cached=True, max_age=60),
}

# Since when samples count, why nothing is stored, why upstream is not asked, what is replaced.
OFF, NO_STORE = Reason.OFF, Reason.NO_STORE
READONLY, OFFLINE, ONLY = Reason.READONLY, Reason.OFFLINE, Reason.ONLY_IF_CACHED
TERMS: dict[Mode, dict[str, Reason | Terms]] = {
    Mode.READWRITE: {
        "nothing": PLAIN,
        "no-store": NO_STORE,
        "no-cache": Terms(inf),
        "max-age=0": Terms(1000.0),
        "max-age=60": Terms(940.0),
        "only-if-cached": Terms(-inf, None, ONLY),
        "no-cache, max-age=60": Terms(inf),
        "no-store, no-cache": NO_STORE,
        "no-store, max-age=60": NO_STORE,
        "only-if-cached, no-cache": Terms(inf, None, ONLY),
        "only-if-cached, no-store": Terms(inf, NO_STORE, ONLY),
        "only-if-cached, max-age=60": Terms(940.0, None, ONLY),
    },
    Mode.READONLY: {
        "nothing": Terms(-inf, READONLY),
        "no-store": NO_STORE,
        "no-cache": Terms(inf, READONLY, None),
        "max-age=0": Terms(1000.0, READONLY, None),
        "max-age=60": Terms(940.0, READONLY, None),
        "only-if-cached": Terms(-inf, READONLY, ONLY),
        "no-cache, max-age=60": Terms(inf, READONLY, None),
        "no-store, no-cache": NO_STORE,
        "no-store, max-age=60": NO_STORE,
        "only-if-cached, no-cache": Terms(inf, READONLY, ONLY),
        "only-if-cached, no-store": Terms(inf, NO_STORE, ONLY),
        "only-if-cached, max-age=60": Terms(940.0, READONLY, ONLY),
    },
    Mode.REFRESH: {
        "nothing": Terms(inf),
        "no-store": NO_STORE,
        "no-cache": Terms(inf),
        "max-age=0": Terms(inf),
        "max-age=60": Terms(inf),
        "only-if-cached": Terms(inf, None, ONLY),
        "no-cache, max-age=60": Terms(inf),
        "no-store, no-cache": NO_STORE,
        "no-store, max-age=60": NO_STORE,
        "only-if-cached, no-cache": Terms(inf, None, ONLY),
        "only-if-cached, no-store": Terms(inf, NO_STORE, ONLY),
        "only-if-cached, max-age=60": Terms(inf, None, ONLY),
    },
    Mode.OFFLINE: {
        "nothing": Terms(-inf, None, OFFLINE),
        "no-store": Terms(inf, NO_STORE, OFFLINE),
        "no-cache": Terms(inf, None, OFFLINE),
        "max-age=0": Terms(1000.0, None, OFFLINE),
        "max-age=60": Terms(940.0, None, OFFLINE),
        "only-if-cached": Terms(-inf, None, OFFLINE),
        "no-cache, max-age=60": Terms(inf, None, OFFLINE),
        "no-store, no-cache": Terms(inf, NO_STORE, OFFLINE),
        "no-store, max-age=60": Terms(inf, NO_STORE, OFFLINE),
        "only-if-cached, no-cache": Terms(inf, None, OFFLINE),
        "only-if-cached, no-store": Terms(inf, NO_STORE, OFFLINE),
        "only-if-cached, max-age=60": Terms(940.0, None, OFFLINE),
    },
    Mode.OFF: dict.fromkeys(ASKED, OFF),
}


@each("mode", Mode)
@each("asked", ASKED)
def test_terms(mode: Mode, asked: str) -> None:
    """Of the mode and the client's directives, the stricter one holds."""
    wanted, found = TERMS[mode][asked], terms(mode, ASKED[asked], NOW)
    if not isinstance(wanted, Terms):
        assert found is wanted
        return
    assert isinstance(found, Terms)
    assert (found.since, found.denial) == (wanted.since, wanted.denial)
    if not wanted.denial:  # else nothing comes that could be stored
        assert found == wanted


@each("mode", Mode)
@each("asked", ASKED)
def test_what_is_replaced_did_not_count(mode: Mode, asked: str) -> None:
    """Samples replace others only where some do not count and new ones may be stored."""
    found = terms(mode, ASKED[asked], NOW)
    if isinstance(found, Terms):
        assert found.replaces is (found.since > -inf and found.refusal is None)


@each("mode", Mode)
def test_plain_terms(mode: Mode) -> None:
    """An ordinary call has the default terms, and no other has."""
    assert (terms(mode, Directives(), NOW) == PLAIN) is (mode is Mode.READWRITE)


def test_modes() -> None:
    """Each mode is known by its public name."""
    assert set(Mode) == {"readwrite", "readonly", "refresh", "offline", "off"}

"""Who may be answered from the store without asking upstream."""

from __future__ import annotations

import pytest

from sglang_cached_addon.admission import (
    CREDENTIAL_FIELDS,
    Admission,
    credential,
    credential_headers,
)

KEY = b"Bearer sk-very-secret"
A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


@pytest.mark.parametrize("name", CREDENTIAL_FIELDS)
def test_each_field_makes_a_credential(name: bytes) -> None:
    """Clients with other keys, or none, would be taken for one that was accepted."""
    one = credential({name: KEY, b"accept": b"*/*"})
    assert len(one) == 32
    assert one == credential({b"user-agent": b"x", name: KEY})
    assert one != credential({name: KEY + b"x"})
    assert one != credential({other: KEY for other in CREDENTIAL_FIELDS if other != name})
    assert KEY not in one


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"content-type": b"application/json"},
        {b"proxy-authorization": b"Basic eDp5"},
        {b"x-authorization": KEY},
    ],
)
def test_no_credential(headers: dict[bytes, bytes]) -> None:
    """A header that differs from call to call would make every call a stranger's."""
    assert credential(headers) == b""
    assert credential_headers(headers) == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({b"authorization": b""}, {}),
        ({b"authorization": b"k"}, {b"x-api-key": b"k"}),
        ({b"authorization": b"k"}, {b"authorization": b"k", b"x-api-key": b""}),
        (
            {b"authorization": b"a", b"x-api-key": b"b"},
            {b"authorization": b"b", b"x-api-key": b"a"},
        ),
        (
            {b"authorization": b"a", b"x-api-key": b"b"},
            {b"authorization": b"a9:x-api-key1:b"},
        ),
        ({b"authorization": b"Bearer k"}, {b"authorization": b"bearer k"}),
    ],
)
def test_credentials_do_not_run_into_each_other(
    one: dict[bytes, bytes], other: dict[bytes, bytes]
) -> None:
    """A made-up head would count as another client's key."""
    assert credential(one) != credential(other)


def test_order_of_the_head_does_not_matter() -> None:
    """A client that sorts its headers would be a stranger."""
    one = {b"authorization": b"a", b"cookie": b"b"}
    other = dict(reversed(one.items()))
    assert credential(one) == credential(other)
    assert credential_headers(one) == credential_headers(other) == tuple(one.items())


@pytest.mark.parametrize(
    ("is_open", "accepted_at", "now", "is_down", "admits"),
    [
        (None, None, 100.0, False, False),
        (None, None, 100.0, True, False),
        (None, 100.0, 100.0, False, True),
        (None, 100.0, 160.0, False, True),
        (None, 100.0, 160.1, False, False),
        (None, 100.0, 99999.0, True, True),
        (False, None, 100.0, False, False),
        (False, None, 100.0, True, False),
        (False, 100.0, 130.0, False, True),
        (False, 100.0, 161.0, False, False),
        (False, 100.0, 161.0, True, True),
        (True, None, 100.0, False, True),
        (True, 100.0, 99999.0, False, True),
        (True, None, 100.0, True, True),
    ],
)
def test_who_is_admitted(
    is_open: bool | None, accepted_at: float | None, now: float, is_down: bool, admits: bool
) -> None:
    """A hit would open a server that has a key, or an open one would be asked every time."""
    admission = Admission(seconds=60)
    admission.is_open = is_open
    if accepted_at is not None:
        admission.accept(A, accepted_at)
    assert admission.admits(A, now, is_down=is_down) is admits
    assert admission.admits(B, now, is_down=is_down) is (is_open is True)


def test_no_credential_has_to_be_accepted_too() -> None:
    """A client without a key would be let in where a key is asked for."""
    admission = Admission()
    assert not admission.admits(b"", 0.0)
    admission.accept(b"", 0.0)
    assert admission.admits(b"", 1.0)
    assert not admission.admits(A, 1.0)


def test_each_acceptance_counts_anew() -> None:
    """A client that is active would be stopped every minute."""
    admission = Admission(seconds=60)
    admission.accept(A, 0.0)
    admission.accept(A, 50.0)
    assert admission.admits(A, 110.0)
    assert not admission.admits(A, 111.0)


@pytest.mark.parametrize("is_down", [False, True])
def test_a_refused_credential_is_forgotten(is_down: bool) -> None:
    """A key that was withdrawn would open the store until it is old, or for ever."""
    admission = Admission()
    admission.accept(A, 0.0)
    admission.accept(B, 0.0)
    admission.forget(A)
    admission.forget(C)
    assert not admission.admits(A, 1.0, is_down=is_down)
    assert admission.admits(B, 1.0, is_down=is_down)


@pytest.mark.parametrize("is_open", [True, False, None])
def test_another_process_knows_nobody(is_open: bool | None) -> None:
    """Keys of the last server, or its lack of them, would count for the next one."""
    admission = Admission()
    admission.is_open = is_open
    admission.accept(A, 0.0)
    admission.forget_all()
    assert admission.is_open is None
    assert not admission.admits(A, 0.0, is_down=True)


def test_the_oldest_acceptance_goes() -> None:
    """Keys that are guessed, or cookies that change, would fill the memory."""
    admission = Admission(limit=2)
    admission.accept(A, 0.0)
    admission.accept(B, 1.0)
    admission.accept(A, 2.0)
    admission.accept(C, 3.0)
    assert [admission.admits(one, 3.0) for one in (A, B, C)] == [True, False, True]


def test_nothing_is_shown() -> None:
    """A key, or its digest, would stand in a log."""
    admission = Admission()
    known = credential({b"authorization": KEY})
    admission.accept(known, 0.0)
    shown = repr(admission) + str(admission)
    assert "secret" not in shown
    assert known.hex() not in shown
    assert repr(known) not in shown

"""Who may be answered from the store without asking upstream."""

from __future__ import annotations

from sglang_cached_addon.core.admission import (
    CREDENTIAL_FIELDS,
    MAX_RENEWED,
    Admission,
    Asker,
    credential,
    credential_headers,
)
from tests.tables import each

KEY = b"Bearer sk-very-secret"
A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


@each("name", CREDENTIAL_FIELDS)
def test_each_field_makes_a_credential(name: bytes) -> None:
    """Each key, and none, is a credential of its own."""
    one = credential({name: KEY, b"accept": b"*/*"})
    assert len(one) == 32
    assert one == credential({b"user-agent": b"x", name: KEY})
    assert one != credential({name: KEY + b"x"})
    assert one != credential({other: KEY for other in CREDENTIAL_FIELDS if other != name})
    assert KEY not in one


@each(
    "headers",
    [
        {}, {b"content-type": b"application/json"}, {b"proxy-authorization": b"Basic eDp5"},
        {b"x-authorization": KEY}, {b"cookie": KEY},
    ],
)  # fmt: skip
def test_no_credential(headers: dict[bytes, bytes]) -> None:
    """A header that differs from call to call is no credential."""
    assert credential(headers) == b""
    assert credential_headers(headers) == ()


@each(
    ("one", "other"),
    [
        ({b"authorization": b""}, {}),
        ({b"authorization": b"k"}, {b"x-api-key": b"k"}),
        ({b"authorization": b"k"}, {b"authorization": b"k", b"x-api-key": b""}),
        (
            {b"authorization": b"a", b"x-api-key": b"b"},
            {b"authorization": b"b", b"x-api-key": b"a"},
        ),
        ({b"authorization": b"a", b"x-api-key": b"b"}, {b"authorization": b"a9:x-api-key1:b"}),
        ({b"authorization": b"Bearer k"}, {b"authorization": b"bearer k"}),
    ],
)
def test_credentials_do_not_run_into_each_other(
    one: dict[bytes, bytes], other: dict[bytes, bytes]
) -> None:
    """Two different heads are never one credential."""
    assert credential(one) != credential(other)


def test_named_fields() -> None:
    """Fields that only some servers read make a credential where they are named. The order of
    fields does not matter."""
    both = {b"authorization": b"a", b"x-api-key": b"b"}
    turned = dict(reversed(both.items()))
    assert credential(both) == credential(turned)
    assert credential_headers(both) == credential_headers(turned) == tuple(both.items())
    names = (*CREDENTIAL_FIELDS, b"cookie")
    one, other = {b"cookie": b"a"}, {b"cookie": b"b"}
    assert credential(one, names) not in (b"", credential(other, names))
    assert credential_headers(one, names) == ((b"cookie", b"a"),)


ONE, OTHER = (Asker(key, "POST", "/generate", "m") for key in (A, B))
NOBODY = ONE._replace(credential=b"")

# An asker that was accepted at 100; then the time, whether upstream is being asked about it again,
# whether it is down; and whether the asker is admitted.
AGES = [
    (100.0, False, False, True),
    (160.0, False, False, True),
    (160.1, False, False, False),
    (160.1, True, False, True),
    (400.0, True, False, True),
    (400.1, True, False, False),
    (99999.0, False, True, True),
]


@each(("now", "is_asked", "is_down", "admits"), AGES)
def test_how_long_it_counts(now: float, is_asked: bool, is_down: bool, admits: bool) -> None:
    """An acceptance counts for a minute; for longer only while upstream cannot say otherwise."""
    admission = Admission()
    admission.accept(ONE, 100.0)
    admission.renewing(ONE, is_asked=is_asked)
    assert admission.admits(ONE, now, is_down=is_down) is admits
    admission.renewing(ONE, is_asked=False)
    assert admission.admits(ONE, now, is_down=is_down) is (admits and not is_asked)


@each("is_down", [False, True])
@each("accepted", [ONE, NOBODY])
def test_only_the_same_asker(accepted: Asker, is_down: bool) -> None:
    """What upstream has said to one is for the same credential, route and model only; and what it
    said to one that shows none is for nobody who shows some, while it can be asked about them."""
    admission = Admission()
    admission.accept(accepted, 0.0)
    others = [
        *(() if accepted is NOBODY and is_down else (OTHER,)),
        *((NOBODY,) if accepted is ONE else () if is_down else (ONE,)),
        accepted._replace(method="PUT"),
        accepted._replace(path="/v1/chat/completions"),
        accepted._replace(model="other"),
        accepted._replace(model=""),
        accepted._replace(routing=b"r"),
    ]
    assert admission.admits(accepted, 1.0, is_down=is_down)
    assert not any(admission.admits(other, 1.0, is_down=is_down) for other in others)
    assert admission.open == ({NOBODY} if accepted is NOBODY else set())


def test_refusals() -> None:
    """A 401 is about the credential, a 403 about what was asked with it; neither about others."""
    admission = Admission()
    chat = ONE._replace(path="/v1/chat/completions")
    for asker in (ONE, chat, OTHER, NOBODY):
        admission.accept(asker, 0.0)
    admission.refuse(ONE, 403)
    assert [admission.admits(one, 1.0) for one in (ONE, chat, OTHER)] == [False, True, True]
    admission.accept(ONE, 1.0)
    admission.refuse(chat._replace(model="x"), 401)
    assert [admission.admits(one, 2.0) for one in (ONE, chat, OTHER)] == [False, False, True]
    admission.refuse(NOBODY, 401)
    assert not admission.admits(NOBODY, 2.0)
    assert not admission.open
    admission.forget_all()
    assert not admission.admits(OTHER, 2.0, is_down=True)


def test_the_oldest_acceptance_goes() -> None:
    """Keys that are guessed do not fill the memory."""
    admission = Admission(limit=2)
    askers = [ONE._replace(credential=key) for key in (A, B, C)]
    for at, number in enumerate((0, 1, 0, 2)):
        admission.accept(askers[number], float(at))
    assert [admission.admits(one, 3.0) for one in askers] == [True, False, True]


def test_what_is_renewed() -> None:
    """Half a minute before it lapses, of those who asked within ten minutes, those who did last."""
    admission = Admission()
    askers = [ONE._replace(credential=b"%d" % n) for n in range(MAX_RENEWED + 1)]
    for at, asker in enumerate(askers):
        admission.accept(asker, at / 100)
    assert admission.due(29.0) == []
    assert admission.due(31.0) == list(reversed(askers[1:]))
    admission.admits(askers[0], 31.0)
    assert admission.due(32.0) == [askers[0], *reversed(askers[2:])]
    admission.renewing(askers[0], is_asked=True)
    assert admission.due(32.0) == list(reversed(askers[2:]))
    assert admission.due(631.0) == []
    admission.renewing(askers[0], is_asked=False)
    assert admission.due(630.9) == [askers[0]]


def test_nothing_is_shown() -> None:
    """Neither a key nor its digest comes into a log."""
    admission = Admission()
    known = credential({b"authorization": KEY})
    admission.accept(ONE._replace(credential=known), 0.0)
    shown = repr(admission) + str(admission)
    assert "secret" not in shown
    assert known.hex() not in shown
    assert repr(known) not in shown

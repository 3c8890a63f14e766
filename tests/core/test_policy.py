"""What may be looked up and what may be stored."""

from __future__ import annotations

import re
from math import inf

from sglang_cached_addon.core.directives import parse
from sglang_cached_addon.core.policy import (
    PLAIN,
    Mode,
    Reason,
    Refused,
    Terms,
    store_refusal,
    terms,
)
from tests.tables import each


def test_only_a_200_is_stored() -> None:
    """Only an answer with status 200 is stored."""
    assert [status for status in range(100, 600) if not store_refusal(status)] == [200]
    assert store_refusal(404) is Reason.STATUS


@each("reason", Reason)
def test_reasons(reason: Reason) -> None:
    """Each reason is a plain token with a value of its own, and says what it means."""
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9.]+)*", str(reason))
    assert reason.meaning and Reason._value2member_map_[reason.value] is reason
    assert Refused(reason).reason is reason
    assert str(Refused(reason)) == str(reason)


NOW = 1000.0
OFF, NO_STORE = Reason.OFF, Reason.NO_STORE
READONLY, OFFLINE, ONLY = Reason.READONLY, Reason.OFFLINE, Reason.ONLY_IF_CACHED

# What a client asks; then for readwrite, readonly, refresh and offline: since when samples count,
# why nothing is stored, why upstream is not asked; or why the call is not looked up at all.
TERMS: dict[str, tuple[Reason | Terms, ...]] = {
    "": (PLAIN, Terms(-inf, READONLY), Terms(inf), Terms(-inf, None, OFFLINE)),
    "no-store": (NO_STORE, NO_STORE, NO_STORE, Terms(inf, NO_STORE, OFFLINE)),
    "no-cache": (Terms(inf), Terms(inf, READONLY), Terms(inf), Terms(inf, None, OFFLINE)),
    "max-age=0": (
        Terms(1000.0), Terms(1000.0, READONLY), Terms(inf), Terms(1000.0, None, OFFLINE),
    ),
    "max-age=60": (Terms(940.0), Terms(940.0, READONLY), Terms(inf), Terms(940.0, None, OFFLINE)),
    "only-if-cached": (
        Terms(-inf, None, ONLY), Terms(-inf, READONLY, ONLY), Terms(inf, None, ONLY),
        Terms(-inf, None, OFFLINE),
    ),
    "no-cache, max-age=60": (
        Terms(inf), Terms(inf, READONLY), Terms(inf), Terms(inf, None, OFFLINE),
    ),
    "no-store, no-cache": (NO_STORE, NO_STORE, NO_STORE, Terms(inf, NO_STORE, OFFLINE)),
    "no-store, max-age=60": (NO_STORE, NO_STORE, NO_STORE, Terms(inf, NO_STORE, OFFLINE)),
    "only-if-cached, no-cache": (
        Terms(inf, None, ONLY), Terms(inf, READONLY, ONLY), Terms(inf, None, ONLY),
        Terms(inf, None, OFFLINE),
    ),
    "only-if-cached, no-store": (*[Terms(inf, NO_STORE, ONLY)] * 3, Terms(inf, NO_STORE, OFFLINE)),
    "only-if-cached, max-age=60": (
        Terms(940.0, None, ONLY), Terms(940.0, READONLY, ONLY), Terms(inf, None, ONLY),
        Terms(940.0, None, OFFLINE),
    ),
}  # fmt: skip


@each("asked", TERMS)
def test_terms(asked: str) -> None:
    """Of the mode and the client's directives, the stricter one holds. Samples replace others only
    where some do not count and new ones may be stored; an ordinary call alone has the default."""
    directives = parse({b"cache-control": asked.encode()})
    assert terms(Mode.OFF, directives, NOW) is OFF
    modes = (Mode.READWRITE, Mode.READONLY, Mode.REFRESH, Mode.OFFLINE)
    for mode, wanted in zip(modes, TERMS[asked], strict=True):
        found = terms(mode, directives, NOW)
        assert (found == PLAIN) is (mode is Mode.READWRITE and not asked), mode
        if not isinstance(wanted, Terms):
            assert found is wanted, mode
            continue
        assert isinstance(found, Terms), mode
        assert (found.since, found.denial) == (wanted.since, wanted.denial), mode
        if not wanted.denial:  # else nothing comes that could be stored
            assert found == wanted, mode
        assert found.replaces is (found.since > -inf and found.refusal is None), mode


def test_modes() -> None:
    """Each mode is known by its public name."""
    assert set(Mode) == {"readwrite", "readonly", "refresh", "offline", "off"}

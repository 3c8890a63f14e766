"""Servers that take turns behind one URL."""

from __future__ import annotations

from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.upstream.sightings import MEMORY_SECONDS, REST_SECONDS, Sightings
from tests.tables import each


def who(name: str) -> Identity:
    """`ab` is the process `a` with the model `b`; `-b` tells nothing of its process."""
    return Identity(name, name, None, name[0].replace("-", ""))


@each(
    ("seen", "several"),
    [
        ("1aa 1aa 1aa", False), ("1aa 1ba", False), ("1aa 1ba 1ca", False), ("1aa 1ba 1aa", True),
        ("1aa 1ba 1ba 1ca 1aa", True),
        # on another connection it may be any
        ("1aa 2ba 1aa 2ba", False), ("1aa 1ba 2aa", False), ("1aa 2ba 2aa 2ba", True),
        # a process whose model changes to and fro is one
        ("1aa 1ab 1aa", False), ("1-a 1-b 1-a", True), ("1-a 1-b", False),
    ],
)  # fmt: skip
def test_who_comes_back(seen: str, several: bool) -> None:
    """Several take turns where one comes back on a connection on which another was seen since."""
    sightings = Sightings()
    for one in seen.split():
        sightings.saw(int(one[0]), who(one[1:]), 10.0)
    assert sightings.are_several(10.0) is several


def test_for_how_long() -> None:
    """One that comes back late says nothing, and what is known is so for a while."""
    for late, several in ((MEMORY_SECONDS - 1, True), (MEMORY_SECONDS, False)):
        sightings = Sightings()
        for name, at in (("aa", 0.0), ("ba", 1.0), ("aa", late)):
            sightings.saw(1, who(name), at)
        assert sightings.are_several(late) is several
        assert not sightings.are_several(late + REST_SECONDS)


def test_many() -> None:
    """Of very many servers, the one that was seen longest ago is forgotten."""
    sightings = Sightings()
    for k in range(17):
        sightings.saw(1, who(f"-{k}"), 0.0)
    sightings.saw(1, who("-0"), 0.0)
    assert not sightings.are_several(0.0)

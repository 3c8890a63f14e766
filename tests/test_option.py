"""An entry of the settings' table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from sglang_cached_addon.cli.start import flag
from sglang_cached_addon.option import entries, option


@dataclass(frozen=True)
class Table:
    """Three settings as somebody might add them."""

    tries: int = option(3, "How often.", bounds=(1, 9), metavar="N")
    waits: bool = option(True, "Wait.", flag="--no-wait", flag_help="Do not wait.")
    peers: str = option("", "A peer.", between=",", is_secret=True)


def test_a_new_setting_is_one_entry() -> None:
    """Name, flag, variable, default, help and reading follow from one entry."""
    tries, waits, peers = entries(Table, "sglang_")
    assert (tries.name, tries.attribute, tries.type) == ("sglang_tries", "tries", int)
    assert [flag(each).opts for each in (tries, waits, peers)] == [
        ["--tries"], ["--no-wait"], ["--peer"],
    ]  # fmt: skip
    assert [each.variable for each in (tries, waits, peers)] == [
        "SGLANG_CACHED_TRIES", "SGLANG_CACHED_NO_WAIT", "SGLANG_CACHED_PEER",
    ]  # fmt: skip
    assert (waits.option_help, waits.long_help) == ("Wait.", "Do not wait.")
    assert peers.option_help == "A peer; several with commas between."
    assert peers.long_help == "A peer; may be repeated."
    assert [tries.held(4), waits.held(True), waits.held(False)] == [4, False, True]
    assert peers.held(("a", "b")) == "a,b"
    lines = replace(peers, between="\n")
    assert lines.option_help == "A peer; several in a line each."
    assert lines.held(("a, b", "c")) == "a, b\nc"
    assert tries.read(4) == 4
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=f"^sglang_tries: {wrong}: must be a number from 1"):
            tries.read(wrong)
    assert repr(Table(tries=1, waits=True, peers="s3cret")) == (
        f"{Table.__qualname__}(tries=1, waits=True)"
    )

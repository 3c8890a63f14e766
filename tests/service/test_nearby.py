"""The nearest stored calls, of a journal and of memory."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.nearby import Nearby, Nearest
from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.journal.sketches import Sketches
from tests.conftest import until
from tests.service.exchanging import Setup, body, native
from tests.upstream.scripted import bounded


def asked(setup: Setup, text: Any, **more: Any) -> Known:
    raw = json.dumps({**body(), "text": text, **more}).encode()
    found = setup.exchange.lookup.read("POST", "/generate", raw, b"")
    assert isinstance(found, Known)
    return found


def fill(setup: Setup) -> None:
    for text in ("one two three", "one two four", "five six seven"):
        setup.complete(setup.fetch({**body(), "text": text}), native("x"))


@bounded
async def test_in_memory() -> None:
    """Without a journal, the calls that were read lately, and are still stored, are compared."""
    setup = Setup()
    nearby = Nearby(setup.store, setup.exchange.lookup, None)
    fill(setup)
    near = await nearby.of(asked(setup, "one two thirty"))
    assert [one.differences[0].stored for one in near.calls] == [
        "one two three", "one two four", "five six seven",
    ]  # fmt: skip
    setup.store.remove(near.calls[0].key)
    near = await nearby.of(asked(setup, "one two thirty"))
    assert near.calls[0].differences[0].stored == "one two four"
    nearby.close()


@bounded
async def test_on_disk(tmp_path: Path) -> None:
    """What is in the journal is compared, unless it was removed."""
    with closing(DiskStore(tmp_path)) as store:
        setup = Setup(store)
        fill(setup)
        until(lambda: not store.journal.pending)
        nearby = Nearby(store, setup.exchange.lookup, Sketches(store.journal.path), 60.0)
        with closing(nearby):
            said = await nearby.sentence(asked(setup, "one two thirty"), with_values=True)
            assert 'text (asked "one two thirty", stored "one two three")' in said
            said = await nearby.sentence(asked(setup, "one two thirty"), with_values=False)
            assert said.endswith("differs in text.")
            listed = asked(setup, ["one two three", "five six nine"])
            said = await nearby.sentence(listed, with_values=True)  # of the one that is missing
            assert 'text (asked "five six nine", stored "five six seven")' in said
            near = await nearby.of(asked(setup, "one two thirty"))
            store.remove(near.calls[0].key)
            again = await nearby.of(asked(setup, "one two thirty"))
            assert again.calls == near.calls[1:]


def test_not_all_was_looked_through() -> None:
    """It is told how much was looked through, unless that is all."""
    assert (
        Nearest(share=0.25).sentence().endswith("So far, 25% of what is stored was looked through.")
    )
    assert Nearest().sentence() == "Nothing is stored for this API."

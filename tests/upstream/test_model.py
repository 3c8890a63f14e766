"""Which model answers, after requests and restarts that change it."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream import Upstream
from tests.tables import each
from tests.upstream.scripted import (
    INFO,
    SAID,
    SERVER,
    Kept,
    Script,
    admits,
    asking,
    bounded,
    changed,
    refusal,
    run,
    scripted,
    serving,
    settled,
    until,
)


def names(upstream: Upstream) -> tuple[str, str]:
    return upstream.model.fingerprint, upstream.model.epochs.adapters_token


@bounded
async def test_restart_of_one_that_was_away() -> None:
    """A process is another one, too, where something else has answered in between, as a balancer
    does that has nobody behind it; also for a proxy that was started anew meanwhile."""
    for is_anew in (False, True):
        kept = Kept()
        async with serving() as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream) is None
                await changed(upstream)
                await upstream.inquiry.check()
                before, says = upstream.model.fingerprint, script.says
                script.says = {}
                await upstream.inquiry.check()
                assert not upstream.model.fingerprint
                script.says = {**says, "/server_info": (200, {**SERVER, "random_seed": 2})}
                if not is_anew:
                    await upstream.inquiry.check()
                    assert upstream.model.fingerprint
                    assert upstream.model.fingerprint != before
            if is_anew:
                async with asking(script.url, kept) as upstream:
                    await upstream.inquiry.check()
                    assert upstream.model.fingerprint
                    assert upstream.model.fingerprint != before


@each("status", [200, 400, 401, 404, 500, None])
@each(("change", "adapter"), [(Change.MODEL, None), (Change.ADAPTER, None), (Change.ADAPTER, "x")])
@bounded
async def test_change(change: Change, adapter: str | None, status: int | None) -> None:
    """What upstream has carried out, or may have, begins anew; what it refused changes nothing.
    Until that is known, what is stored is given, and nothing is stored."""
    kept = Kept()
    async with serving() as script, asking(script.url, kept) as upstream:
        assert await refusal(upstream) is None
        before, version = names(upstream), upstream.model.version
        update = upstream.change(change, adapter)
        await update.announced
        assert kept.document["unsettled"]  # before it is passed on
        assert await upstream.confirming.confirm(version, ()) is None  # it is not there yet
        update.sent()
        assert (names(upstream), admits(upstream)) == (before, True)
        asked = len(script.asked)
        confirming = asyncio.ensure_future(upstream.confirming.confirm(version, ()))
        await until(lambda: len(script.asked) > asked)
        await until(lambda: script.asked[-1].is_answered.is_set())
        await settled(200)
        assert not confirming.done()
        update.ended(status)
        is_refused = status in (401, 404)
        assert await confirming is (None if is_refused else Reason.MODEL_CHANGED)
        assert (names(upstream) == before) is is_refused
        assert await refusal(upstream) is None
        assert await upstream.confirming.confirm(upstream.model.version, ()) is None
        assert (names(upstream) == before) is is_refused
        await until(lambda: kept.document["epochs"] == upstream.model.epochs.as_json())
        await until(lambda: not kept.document["unsettled"])


def test_a_word_of_before_a_change() -> None:
    """What upstream was asked before a change was through may be of the former model, however late
    it comes: it does not settle what the change has left behind, which may be a model that was
    there before, under the same name and with other weights."""

    async def test(held: str) -> None:
        kept = Kept()
        async with serving(held=(held,)) as script, asking(script.url, kept) as upstream:
            former = {}
            for name in ("b", "m"):
                script.says["/model_info"] = (200, {**INFO, "model_path": name})
                await upstream.inquiry.check()
                former[name] = upstream.model.fingerprint
            script.may_answer.clear()
            script.asked.clear()
            if held == "/server_info":
                asked = asyncio.ensure_future(upstream.inquiry.check())
            else:
                confirming = upstream.confirming.confirm(upstream.model.version, ())
                asked = asyncio.ensure_future(confirming)
            await until(lambda: held in script.paths)
            script.says["/model_info"] = (200, {**INFO, "model_path": "b"})
            await changed(upstream)
            script.may_answer.set()
            await asked
            await until(lambda: not kept.document["unsettled"])
            await upstream.inquiry.check()
            assert upstream.model.fingerprint not in former.values()

    for held in SAID:
        run(partial(test, held))


@scripted()
async def test_changes_that_do_not_end(script: Script, upstream: Upstream) -> None:
    """A request that is held open, or whose client hangs up before upstream has it, holds up
    nobody: answers go on being stored and given."""
    assert await refusal(upstream) is None
    version = upstream.model.version
    held = [upstream.change(Change.MODEL, None) for _ in range(3)]
    await held[0].announced
    for update in held[:2]:
        update.ended(None)
    assert (upstream.model.version, admits(upstream)) == (version, True)
    assert await upstream.confirming.confirm(version, ()) is None


@scripted()
async def test_an_update_that_takes_long(
    script: Script, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an update goes on nothing is stored, and no answer waits for its end for long."""
    monkeypatch.setattr("sglang_cached_addon.upstream.confirming.PATIENCE_SECONDS", 0.05)
    assert await refusal(upstream) is None
    update = upstream.change(Change.MODEL, None)
    update.sent()
    confirmed = await upstream.confirming.confirm(upstream.model.version, ())
    assert confirmed is Reason.MODEL_CHANGED
    update.ended(401)
    assert await upstream.confirming.confirm(upstream.model.version, ()) is None


@bounded
async def test_change_of_the_unknown() -> None:
    """Weights that are changed before anybody asked are not taken for the old ones."""
    kept = Kept()
    async with serving() as script:
        async with asking(script.url, kept) as upstream:
            assert await refusal(upstream) is None
            before = upstream.model.fingerprint
        kept.document["identity"] = None
        async with asking(script.url, kept) as upstream:
            await changed(upstream)
            assert await refusal(upstream) is None
            assert upstream.model.fingerprint != before
            await until(lambda: not kept.document["unsettled"])


@bounded
async def test_change_by_another_proxy() -> None:
    """What another proxy has changed is not given any more."""
    kept = Kept()
    async with serving() as script, asking(script.url, kept) as upstream:
        assert await refusal(upstream) is None
        model, asked = upstream.model, len(script.asked)
        before, version = model.fingerprint, model.version
        assert model.identity
        known = model.epochs.as_numbers()
        upstream.adopt(known, {**known, "last": 7, "m:another": 7})
        assert (model.fingerprint, model.version) == (before, version)
        known = model.epochs.as_numbers()
        upstream.adopt(known, {**known, "last": 8, f"m:{model.identity.digest}": 8})
        assert model.fingerprint != before
        assert model.version > version
        assert not admits(upstream)  # it may have another name by now
        assert await upstream.confirming.confirm(version, ()) is Reason.MODEL_CHANGED
        await until(lambda: len(script.asked) > asked)
        await until(lambda: kept.document["epochs"]["last"] == 8)
        before = upstream.model.version
        known = upstream.model.epochs.as_numbers()
        upstream.adopt(known, {**known, "last": 9, "a:adapter": 9})
        assert upstream.model.version > before


@scripted()
async def test_a_former_model_by_another_proxy(script: Script, upstream: Upstream) -> None:
    """A model that another proxy has put in the place of ours gets a new number here, too, though
    it was known before: its own from there may come later than its name."""
    former = {}
    for name in ("b", "m"):
        script.says["/model_info"] = (200, {**INFO, "model_path": name})
        await upstream.inquiry.check()
        assert upstream.model.identity
        former[upstream.model.identity.digest] = upstream.model.fingerprint
    b, m = former
    script.says["/model_info"] = (200, {**INFO, "model_path": "b"})
    known = upstream.model.epochs.as_numbers()
    upstream.adopt(known, {**known, "last": 8, f"m:{m}": 8})
    await until(lambda: upstream.model.identity and upstream.model.identity.digest == b)
    assert upstream.model.fingerprint not in former.values()
    known = upstream.model.epochs.as_numbers()
    upstream.adopt(known, {**known, "last": 20, f"m:{b}": 20})
    await upstream.inquiry.check()
    await upstream.inquiry.check()
    assert upstream.model.epochs.as_numbers()["last"] == 20  # that is its number everywhere


@bounded
async def test_what_was_changed_elsewhere() -> None:
    """What a request made of one server's weights is not believed of another server; it is of the
    same one under another URL."""
    for seed in (1, 2):
        kept = Kept()
        async with serving() as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream) is None
            await changed(upstream)
            await upstream.inquiry.check()
            await until(lambda: kept.document["epochs"]["last"])  # noqa: B023
        async with serving() as other, asking(other.url, kept) as at_other:
            other.says["/server_info"] = (200, {**SERVER, "random_seed": seed})
            assert await refusal(at_other) is None
            assert (at_other.model.fingerprint == upstream.model.fingerprint) is (seed == 1)

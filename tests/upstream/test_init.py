"""Who is behind the URL, and whom it lets ask, against servers that say what they are told to."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.policy import Reason, Restart
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream import State, Upstream
from sglang_cached_addon.wire.tls import tls_context
from tests.certificates import self_signed
from tests.tables import each
from tests.upstream.scripted import (
    INFO,
    MODELS,
    PROBE,
    SECONDS,
    SERVER,
    Clock,
    Kept,
    Script,
    admits,
    asker,
    asking,
    clock,
    credential,
    credential_headers,
    dead_url,
    refusal,
    run,
    saying,
    serving,
    settled,
    until,
)

__all__ = ["clock"]

SAID = ["/model_info", "/server_info"]
"""What is asked where upstream is SGLang."""

ANOTHER = {**SERVER, "random_seed": 2}
"""What another process says."""

OK, NONE, BROKEN, CLOSED = 200, 404, 500, 401
NO_MODEL, UNAUTHORIZED = Reason.NO_MODEL, Reason.UNAUTHORIZED


def infos(script: Script) -> list[str]:
    """The questions about the model, by path."""
    return [path for path in script.paths if path not in ("/generate", "/v1/chat/completions")]


def probes(script: Script) -> list[str | None]:
    """The credentials with which a probe has come."""
    return [a.headers.get("authorization") for a in script.asked if a.body == PROBE]


# What it says of itself

SAYS: dict[str, tuple[dict[str, tuple[int, Any]], Any]] = {
    # what it says; why nobody is let in
    "all": ({"/model_info": (OK, INFO), "/server_info": (OK, SERVER)}, None),
    "no server info": ({"/model_info": (OK, INFO)}, None),
    "server info closed": ({"/model_info": (OK, INFO), "/server_info": (CLOSED, {})}, None),
    "server info broken": ({"/model_info": (OK, INFO), "/server_info": (BROKEN, {})}, NO_MODEL),
    "older": ({"/get_model_info": (OK, INFO), "/get_server_info": (OK, SERVER)}, None),
    "only OpenAI's": ({"/v1/models": (OK, MODELS)}, None),
    "OpenAI's, closed": ({"/v1/models": (OK, MODELS), "/generate": (CLOSED, {})}, UNAUTHORIZED),
    "nothing": ({}, NO_MODEL),
    "not JSON": ({"/model_info": (OK, b"hello")}, NO_MODEL),
    "no name": ({"/model_info": (OK, {"weight_version": "1"})}, NO_MODEL),
    "no models": ({"/v1/models": (OK, {"data": []})}, NO_MODEL),
    "401": ({"/model_info": (401, {})}, UNAUTHORIZED),
    "403": ({"/model_info": (403, {})}, UNAUTHORIZED),
    "500": ({"/model_info": (BROKEN, {})}, NO_MODEL),
    "503": ({"/model_info": (503, {})}, NO_MODEL),
    "elsewhere": ({"/model_info": (307, {})}, NO_MODEL),
}


@each("case", SAYS)
def test_what_it_says(case: str) -> None:
    """A client is let in where upstream names its model, and answers a probe with a 200."""
    says, reason = SAYS[case]

    async def test() -> None:
        async with serving(says=says) as script, asking(script.url) as upstream:
            assert upstream.state is State.UNKNOWN
            assert not admits(upstream)
            assert await refusal(upstream) is reason
            assert admits(upstream) is (reason is None)
            assert upstream.state is State.UP
            is_known = reason is None or case == "OpenAI's, closed"
            assert (upstream.identity is not None) is is_known
            assert bool(upstream.fingerprint) is is_known
            confirmed = await upstream.confirm(upstream.model_version, ())
            assert confirmed is (None if is_known else Reason.UNCONFIRMED)
            if upstream.identity:
                assert upstream.identity.model == "m"
                assert upstream.models == {upstream.fingerprint: "m"}

    run(test)


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an upstream that is not there, or says nothing, no call waits for long, and later ones not
    at all."""
    monkeypatch.setattr("sglang_cached_addon.upstream.FIRST_SECONDS", 0.1)
    monkeypatch.setattr("sglang_cached_addon.upstream.PATIENCE_SECONDS", 0.2)

    async def test() -> None:
        async with serving() as script:
            script.may_answer.clear()
            for url, state in ((script.url, State.UNKNOWN), (dead_url(), State.DOWN)):
                async with asking(url) as upstream:
                    assert await refusal(upstream) is NO_MODEL
                    assert not admits(upstream)
                    assert await upstream.confirm(upstream.model_version, ()) is Reason.UNCONFIRMED
                    assert upstream.state is state

    run(test)


# Who is let in

# Keys that ask in version, and who is let in.
ORDERS = {
    "the bad one first": (["bad", None, "good"], ["good"]),
    "the good one first": (["good", "bad", None, "other"], ["good", "other"]),
    "nobody first": ([None, "good", None], ["good"]),
}
# What is open to everybody, of a server that asks for keys.
OPEN: dict[str, tuple[str, ...]] = {
    "nothing": (), "what it says of itself": ("/model_info", "/server_info", "/v1/models"),
}  # fmt: skip


@each("case", ORDERS)
@each("path", ["/model_info", "/v1/models"])
@each("is_open", OPEN)
def test_keys(case: str, path: str, is_open: str) -> None:
    """Only those are let in whom upstream lets generate, whoever asks first, and whatever upstream
    tells anybody about itself."""
    order, welcome = ORDERS[case]
    says = {path: (200, INFO if path == "/model_info" else MODELS)}

    async def test() -> None:
        async with (
            serving(says=says, keys={"good", "other"}, open_paths=OPEN[is_open]) as script,
            asking(script.url) as upstream,
        ):
            for key in [*order, *order]:
                reason = None if key in welcome else UNAUTHORIZED
                assert await refusal(upstream, key) is reason, key
            assert upstream.asks_keys is (
                True if is_open != "nothing" or None in probes(script) else None
            )

    run(test)


@each("status", [204, 302, 400, 401, 403, 404, 422, 429, 500, 503])
@each("key", [None, "key"])
def test_only_a_200_lets_in(status: int, key: str | None) -> None:
    """Whatever else upstream says to a probe, it does not say that its sender may generate. It is
    not asked with each call, either."""

    async def test() -> None:
        async with serving(probed=status) as script, asking(script.url) as upstream:
            for _ in range(3):
                assert await refusal(upstream, key) is UNAUTHORIZED
            assert len(probes(script)) == 1
            assert upstream.asks_keys is (True if key is None and status in (401, 403) else None)

    run(test)


def test_a_probe_shows_nothing_else() -> None:
    """What a client sends besides its credential may be one that only upstream knows as such: a
    client that shows no credential is not let in by its own 200, but by a probe that is bare."""

    async def test() -> None:
        async with serving(keys={"good"}) as script, asking(script.url) as upstream:
            assert await refusal(upstream, "good") is None
            upstream.heard(asker(None), (), 200, 0.0)
            assert await refusal(upstream) is UNAUTHORIZED
            (bare,) = [
                a for a in script.asked if a.body == PROBE and "authorization" not in a.headers
            ]
            assert bare.headers.keys() == {
                "host",
                "content-type",
                "content-length",
                "accept-encoding",
            }

    run(test)


def test_a_call_accepts_as_well(clock: Clock) -> None:
    """A 200 to a client's own call lets it in, for that route and model; a 403 puts it out of that,
    a 401 out of all."""

    async def test() -> None:
        async with serving(probed=500) as script, asking(script.url) as upstream:
            assert await upstream.check() is State.UP
            chat = asker("key", path="/v1/chat/completions")
            for one in (asker("key"), asker("key", "m"), chat, asker("other")):
                upstream.heard(one, credential_headers("key"), 200, clock.now)

            def lets_in(*askers: Asker) -> list[bool]:
                return [upstream.admits(one, clock.now) for one in askers]

            assert lets_in(asker("key"), asker("key", "m"), chat) == [True] * 3
            assert lets_in(asker("key", "x"), asker("third"), asker(None)) == [False] * 3
            upstream.heard(asker("key", "m"), credential_headers("key"), 403, clock.now)
            assert lets_in(asker("key"), asker("key", "m"), chat) == [True, False, True]
            upstream.heard(chat, credential_headers("key"), 401, clock.now)
            assert lets_in(asker("key"), asker("key", "m"), chat) == [False] * 3
            assert lets_in(asker("other")) == [True]

    run(test)


def test_a_crowd_without_keys() -> None:
    """Any number of clients that upstream refuses get their answer, and the loop goes on."""

    async def test() -> None:
        async with serving(keys={"good"}) as script, asking(script.url) as upstream:
            for _ in range(10):
                asked = [refusal(upstream, key) for key in [None, "a", "b", "c"] * 4]
                assert set(await asyncio.gather(*asked)) == {UNAUTHORIZED}
            assert await refusal(upstream, "good") is None

    run(test)


def test_shared_question() -> None:
    """A crowd at the start is one question; one that leaves takes nothing from the others."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            script.may_answer.clear()
            asking_all = [asyncio.ensure_future(refusal(upstream)) for _ in range(100)]
            await until(lambda: script.asked)
            asking_all[0].cancel()
            script.may_answer.set()
            assert set(await asyncio.gather(*asking_all[1:])) == {None}
            assert infos(script) == SAID
            assert probes(script) == [None]
            assert asking_all[0].cancelled()

    run(test)


def test_refusal_is_not_shared() -> None:
    """One with a bad key who asks first is no reason to refuse the others."""

    async def test() -> None:
        async with serving(keys={"good"}) as script, asking(script.url) as upstream:
            script.may_answer.clear()
            keys = ["bad", "good", None, "good", "bad", "good"]
            asked = [asyncio.ensure_future(refusal(upstream, key)) for key in keys]
            await until(lambda: script.asked)
            script.may_answer.set()
            reasons = await asyncio.gather(*asked)
            assert reasons == [None if k == "good" else UNAUTHORIZED for k in keys]

    run(test)


def test_renewed_beside(clock: Clock) -> None:
    """Who is accepted stays so without waiting, while upstream still accepts it and soon not any
    more where it does not; for as long as it is slow to say, up to five minutes."""

    async def test() -> None:
        async with serving(keys={"a", "b"}) as script, asking(script.url, interval=0.1) as upstream:
            for key in "ab":
                assert await refusal(upstream, key) is None
            script.keys = {"a"}
            clock.now += 31
            assert [admits(upstream, key) for key in "ab"] == [True, True]
            await until(lambda: not admits(upstream, "b") and len(probes(script)) == 4)
            await until(lambda: script.asked[-1].is_answered.is_set())
            await settled(100)
            assert admits(upstream, "a")
            script.may_probe.clear()
            clock.now += 59
            await until(lambda: probes(script)[4:] == ["a"])
            assert admits(upstream, "a")
            clock.now += 200
            assert admits(upstream, "a")
            clock.now += 45
            assert not admits(upstream, "a")
            script.may_probe.set()
            await until(lambda: admits(upstream, "a"))

    run(test)


# Nothing that is stored waits for upstream


@pytest.mark.parametrize("what", ["silent", "5xx", "down"])
def test_a_hit_waits_for_nothing(what: str, clock: Clock) -> None:
    """What upstream said last counts while it does not say anything else, however long that is:
    no call waits for it."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=0.1) as upstream:
            assert await refusal(upstream) is None
            if what == "silent":
                script.may_answer.clear()
            elif what == "5xx":
                script.says |= dict.fromkeys(SAID, (503, {}))
            else:
                script.stop()
                await settled()
            for _ in range(5):
                clock.now += 11  # more than any interval, and less than an acceptance lasts
                assert admits(upstream)
                if what == "5xx":
                    script.asked.clear()
                    await until(lambda: script.asked)
                await settled()

    run(test)


def test_asked_beside(clock: Clock) -> None:
    """Upstream is asked again before its word is old, on one connection; a pause of the client's
    does not end that, and another model is noticed though nobody asks for anything."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=0.1) as upstream:
            assert await refusal(upstream) is None
            assert infos(script) == SAID
            version = upstream.model_version
            for _ in range(3):
                asked = len(infos(script))
                clock.now += 1
                await until(lambda: len(infos(script)) >= asked + 2)  # noqa: B023
            script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
            clock.now += 1
            await until(lambda: upstream.model_version > version)
            assert len({a.connection for a in script.asked if a.body != PROBE}) == 1

    run(test)


def test_a_long_pause(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes after the last call upstream is left alone. The next call gives it a moment to
    speak, and is then answered by what was known."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=0.1) as upstream:
            assert await refusal(upstream) is None
            clock.now += 601
            await until(lambda: not upstream._keeping.is_busy)  # it sleeps
            upstream.heard(asker("key"), credential_headers("key"), 200, clock.now)
            script.may_answer.clear()
            assert not admits(upstream, "key")
            began = asyncio.get_running_loop().time()
            assert await refusal(upstream, "key") is None
            assert 0.2 < asyncio.get_running_loop().time() - began < 2
            clock.now += 0.3
            assert admits(upstream, "key")
            script.may_answer.set()

    run(test)


@pytest.mark.parametrize("said", [(200, {**INFO, "model_path": "x"}), (404, {})])
def test_a_word_after_a_pause(said: tuple[int, Any], clock: Clock) -> None:
    """Where upstream says in that moment that it is another model, nothing of the former is
    given."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=0.1) as upstream:
            assert await refusal(upstream) is None
            clock.now += 601
            await until(lambda: not upstream._keeping.is_busy)
            version = upstream.model_version
            script.says["/model_info"] = said
            await refusal(upstream)
            assert upstream.model_version > version

    run(test)


def test_a_credential_that_may_not_know(clock: Clock) -> None:
    """A key that may generate, and is refused on the routes that tell of the model, does not keep
    those from being asked with a key that may."""

    async def test() -> None:
        async with serving(keys={"a"}) as script, asking(script.url, interval=0.1) as upstream:
            assert await refusal(upstream, "a") is None
            script.keys = {"a", "b"}
            assert await refusal(upstream, "b") is None
            script.keys = {"a"}
            for _ in range(3):
                asked = len(infos(script))
                clock.now += 1
                await until(lambda: len(infos(script)) >= asked + 2)  # noqa: B023
                assert admits(upstream, "a")

    run(test)


# Confirming


def test_confirm() -> None:
    """An answer costs one question, on the connection that shows that it is the same process; all
    of them where that is another one."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            version = upstream.model_version
            assert await upstream.confirm(version, ()) is None
            assert infos(script)[2:] == ["/model_info"]
            script.hang_up()
            await settled()
            asked = len(script.asked)
            assert await upstream.confirm(version, ()) is None
            assert script.paths[asked:] == ["/model_info", "/model_info", "/server_info"]
            assert await upstream.confirm(version, ()) is None
            assert len(script.asked) == asked + 4

    run(test)


@each("status", [400, 403, 404])
def test_confirm_for_a_key_that_may_not_know(status: int) -> None:
    """What is said to a key that may generate, and not ask for the model, is nobody else's: the
    model is known as before, and its answers are stored."""

    async def test() -> None:
        async with serving(keys={"a"}) as script, asking(script.url, interval=1e6) as upstream:
            assert await refusal(upstream, "a") is None
            version = upstream.model_version
            script.refused = {"b": status}
            assert await upstream.confirm(version, credential_headers("b")) is None
            assert (upstream.model_version, admits(upstream, "a")) == (version, True)

    run(test)


def test_confirm_many() -> None:
    """Answers that come together share one question."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            asked = len(script.asked)
            reasons = await asyncio.gather(
                *(upstream.confirm(upstream.model_version, ()) for _ in range(99))
            )
            assert set(reasons) == {None}
            assert len(script.asked) == asked + 1

    run(test)


def test_confirm_is_asked_after() -> None:
    """A word from before an answer came does not confirm it."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            version, asked = upstream.model_version, len(script.asked)
            script.may_answer.clear()
            first = asyncio.ensure_future(upstream.confirm(version, ()))
            await until(lambda: len(script.asked) == asked + 1)
            second = asyncio.ensure_future(upstream.confirm(version, ()))
            await settled()
            script.may_answer.set()
            script.may_answer.clear()  # for who waits now only
            assert await first is None
            script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
            script.may_answer.set()
            assert await second is Reason.MODEL_CHANGED

    run(test)


OTHERS: dict[str, dict[str, Any]] = {
    "another model": {"/model_info": {**INFO, "model_path": "other", "served_model_name": "other"}},
    "other weights": {"/model_info": {**INFO, "weight_version": "2"}},
    "other settings": {"/server_info": {**SERVER, "dtype": "half"}},
    "a restart": {"/server_info": {**SERVER, "random_seed": 2}},
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("restart", Restart)
def test_another(case: str, restart: Restart, caplog: pytest.LogCaptureFixture) -> None:
    """What came of one model is not stored for another. A process that was only restarted is the
    same model, unless people say otherwise; that is said once."""
    caplog.set_level("INFO")

    async def test() -> None:
        async with serving() as script:
            entered: list[str] = []
            async with asking(
                script.url,
                entered=lambda upstream: entered.append(upstream.fingerprint),
                restart=restart,
            ) as upstream:
                assert await refusal(upstream) is None
                version, before = upstream.model_version, upstream.fingerprint
                script.says |= {path: (200, said) for path, said in OTHERS[case].items()}
                if "/server_info" in OTHERS[case]:
                    script.hang_up()  # as it does that has other settings
                    await settled()
                assert await upstream.confirm(version, ()) is Reason.MODEL_CHANGED
                assert upstream.model_version > version
                is_same = case == "a restart" and restart is Restart.SAME
                assert (upstream.fingerprint == before) is is_same
                assert entered[-2:] == [before, upstream.fingerprint]
                assert await upstream.confirm(upstream.model_version, ()) is None
                assert caplog.text.count("was restarted") == is_same

    run(test)


def test_restart_behind_a_balancer() -> None:
    """A balancer's connection outlives the process behind it: after it has said that nobody is
    there, all is asked anew."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=1e6) as upstream:
            assert await refusal(upstream) is None
            await changed(upstream)
            await upstream.check()
            version, before, says = upstream.model_version, upstream.fingerprint, script.says
            script.says = dict.fromkeys(says, (502, {}))
            await upstream.check()
            script.says = {**says, "/server_info": (200, ANOTHER)}
            assert await upstream.confirm(version, ()) is Reason.MODEL_CHANGED
            assert upstream.fingerprint != before

    run(test)


def test_restart_after_a_change() -> None:
    """What a request made of a process's weights is not believed of the next process."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream) is None
            await changed(upstream)
            await until(lambda: kept.document["epochs"]["last"] and not kept.document["unsettled"])
            before = upstream.fingerprint
            script.says["/server_info"] = (200, {**SERVER, "random_seed": 2})
            script.hang_up()
            await settled()
            assert await upstream.confirm(upstream.model_version, ()) is Reason.MODEL_CHANGED
            assert upstream.fingerprint != before

    run(test)


def test_restart_of_one_that_was_away() -> None:
    """A process is another one, too, where something else has answered in between, as a balancer
    does that has nobody behind it; also for a proxy that was started anew meanwhile."""

    async def test() -> None:
        for is_anew in (False, True):
            kept = Kept()
            async with serving() as script:
                async with asking(script.url, kept) as upstream:
                    assert await refusal(upstream) is None
                    await changed(upstream)
                    await upstream.check()
                    before, says = upstream.fingerprint, script.says
                    script.says = {}
                    await upstream.check()
                    assert not upstream.fingerprint
                    script.says = {**says, "/server_info": (200, {**SERVER, "random_seed": 2})}
                    if not is_anew:
                        await upstream.check()
                        assert upstream.fingerprint
                        assert upstream.fingerprint != before
                if is_anew:
                    async with asking(script.url, kept) as upstream:
                        await upstream.check()
                        assert upstream.fingerprint
                        assert upstream.fingerprint != before

    run(test)


def test_down_and_up(clock: Clock) -> None:
    """While a server is down, those whom it accepted get their answers; what it accepted before
    does not count when it is back as another process, which may have other keys."""

    async def test() -> None:
        async with serving(keys={"a", "c"}) as script, asking(script.url, interval=0.1) as upstream:
            for key in "ac":
                assert await refusal(upstream, key) is None
            version = upstream.model_version
            script.stop()
            await settled()
            clock.now += 11
            await until(lambda: upstream.state is State.DOWN)
            for _ in range(3):
                clock.now += 100
                assert [admits(upstream, key) for key in "ac"] == [True, True]
                assert await refusal(upstream, "b") is UNAUTHORIZED
                assert await refusal(upstream) is UNAUTHORIZED
                assert await upstream.confirm(version, ()) is Reason.UNCONFIRMED
            script.keys = {"b"}
            script.says["/server_info"] = (200, {**SERVER, "random_seed": 2})
            script.says["/model_info"] = (200, INFO)
            script.open_paths = ("/model_info", "/server_info")
            await script.start()
            clock.now += 11
            await until(lambda: upstream.state is State.UP)
            assert not admits(upstream, "c")
            for key in ("a", "c", None):
                assert await refusal(upstream, key) is UNAUTHORIZED
            clock.now += 2
            assert await refusal(upstream, "b") is None

    run(test)


def test_a_slow_one_is_not_down(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """A key that was taken back does not come back to life because upstream is slow."""
    monkeypatch.setattr("sglang_cached_addon.upstream.PATIENCE_SECONDS", 0.05)

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=0.1) as upstream:
            assert await refusal(upstream, "a") is None
            upstream.heard(asker("a"), credential_headers("a"), 401, clock.now)
            script.may_answer.clear()
            clock.now += 400
            admits(upstream)
            await until(lambda: upstream.state is State.UNKNOWN)
            assert not admits(upstream, "a")

    run(test)


def test_watch(clock: Clock) -> None:
    """A model that comes and goes during a generation is noticed."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=1e6) as upstream:
            assert await refusal(upstream) is None
            asked, version = len(script.asked), upstream.model_version
            upstream.watch(())
            await until(lambda: len(script.asked) == asked + 1)
            clock.now += 1
            script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
            upstream.watch(())
            await until(lambda: upstream.model_version > version)
            version = upstream.model_version
            script.says["/model_info"] = (200, INFO)
            upstream.doubt()
            await until(lambda: upstream.model_version > version)

    run(test)


# Requests that change the model


async def changed(
    upstream: Upstream,
    status: int | None = 200,
    change: Change = Change.MODEL,
    adapter: str | None = None,
) -> None:
    """A request that changes something, from its head to its end."""
    update = upstream.change(change, adapter)
    await update.announced
    update.sent()
    update.ended(status)


def names(upstream: Upstream) -> tuple[str, str]:
    return upstream.fingerprint, upstream.epochs.adapters_token


@each("status", [200, 400, 401, 404, 500, None])
@each(
    ("change", "adapter"),
    [(Change.MODEL, None), (Change.ADAPTER, None), (Change.ADAPTER, "x")],
)
def test_change(change: Change, adapter: str | None, status: int | None) -> None:
    """What upstream has carried out, or may have, begins anew; what it refused changes nothing.
    Until that is known, what is stored is given, and nothing is stored."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream) is None
            before, version = names(upstream), upstream.model_version
            update = upstream.change(change, adapter)
            await update.announced
            assert kept.document["unsettled"]  # before it is passed on
            assert await upstream.confirm(version, ()) is None  # it is not there yet
            update.sent()
            assert (names(upstream), admits(upstream)) == (before, True)
            confirming = asyncio.ensure_future(upstream.confirm(version, ()))
            await settled()
            assert not confirming.done()
            update.ended(status)
            is_refused = status in (401, 404)
            assert await confirming is (None if is_refused else Reason.MODEL_CHANGED)
            assert (names(upstream) == before) is is_refused
            assert await refusal(upstream) is None
            assert await upstream.confirm(upstream.model_version, ()) is None
            assert (names(upstream) == before) is is_refused
            await until(lambda: kept.document["epochs"] == upstream.epochs.as_json())
            await until(lambda: not kept.document["unsettled"])

    run(test)


def test_a_word_of_before_a_change() -> None:
    """What upstream was asked before a change was through may be of the former model, however late
    it comes: it does not settle what the change has left behind, which may be a model that was
    there before, under the same name and with other weights."""

    async def test() -> None:
        kept = Kept()
        async with serving(held=("/server_info",)) as script, asking(script.url, kept) as upstream:
            former = {}
            for name in ("b", "m"):
                script.says["/model_info"] = (200, {**INFO, "model_path": name})
                await upstream.check()
                former[name] = upstream.fingerprint
            script.may_answer.clear()
            script.asked.clear()
            asked = asyncio.ensure_future(upstream.check())
            await until(lambda: script.paths == SAID)
            script.says["/model_info"] = (200, {**INFO, "model_path": "b"})
            await changed(upstream)
            script.may_answer.set()
            await asked
            await until(lambda: not kept.document["unsettled"])
            await upstream.check()
            assert upstream.fingerprint not in former.values()

    run(test)


def test_changes_that_do_not_end() -> None:
    """A request that is held open, or whose client hangs up before upstream has it, holds up
    nobody: answers go on being stored and given."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            version = upstream.model_version
            held = [upstream.change(Change.MODEL, None) for _ in range(3)]
            await held[0].announced
            for update in held[:2]:
                update.ended(None)
            assert (upstream.model_version, admits(upstream)) == (version, True)
            assert await upstream.confirm(version, ()) is None

    run(test)


def test_change_of_the_unknown() -> None:
    """Weights that are changed before anybody asked are not taken for the old ones."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream) is None
                before = upstream.fingerprint
            kept.document["identity"] = None
            async with asking(script.url, kept) as upstream:
                await changed(upstream)
                assert await refusal(upstream) is None
                assert upstream.fingerprint != before
                await until(lambda: not kept.document["unsettled"])

    run(test)


def test_crash_during_a_change() -> None:
    """After a proxy that was killed while the weights may have changed, nothing of the old ones is
    given: not even before upstream has spoken."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream) is None
                before = upstream.fingerprint
                await upstream.change(Change.MODEL, None).announced
                document = dict(kept.document)
            kept.document = document
            async with asking(script.url, kept) as upstream:
                assert upstream.fingerprint != before
                assert await refusal(upstream) is None
                assert upstream.fingerprint != before

    run(test)


def test_change_by_another_proxy() -> None:
    """What another proxy has changed is not given any more."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream) is None
            before, version, asked = upstream.fingerprint, upstream.model_version, len(script.asked)
            assert upstream.identity
            known = upstream.epochs.as_numbers()
            upstream.adopt(known, {**known, "last": 7, "m:another": 7})
            assert (upstream.fingerprint, upstream.model_version) == (before, version)
            known = upstream.epochs.as_numbers()
            upstream.adopt(known, {**known, "last": 8, f"m:{upstream.identity.digest}": 8})
            assert upstream.fingerprint != before
            assert upstream.model_version > version
            assert await upstream.confirm(version, ()) is Reason.MODEL_CHANGED
            await until(lambda: len(script.asked) > asked)  # it may have another name by now
            await until(lambda: kept.document["epochs"]["last"] == 8)
            before = upstream.model_version
            known = upstream.epochs.as_numbers()
            upstream.adopt(known, {**known, "last": 9, "a:adapter": 9})
            assert upstream.model_version > before

    run(test)


# What outlives the process


def test_offline() -> None:
    """With `--mode offline` nobody is asked, and everybody is let in."""

    async def test() -> None:
        kept = Kept()
        async with serving(keys={"good"}) as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream, "good") is None
                await until(lambda: kept.document)
            before = script.connections
            async with asking(script.url, kept, is_offline=True) as upstream:
                assert upstream.identity
                assert all(admits(upstream, key) for key in ("good", "bad", None))
                assert await upstream.check() is State.UNKNOWN
                assert upstream.look(1e9) is State.UNKNOWN
                upstream.doubt()
                upstream.watch(())
                await settled()
            assert script.connections == before

    run(test)


def test_no_secrets() -> None:
    """Keys are neither in files nor in a debugger's output."""

    async def test() -> None:
        kept = Kept()
        async with serving(keys={"clients-secret"}) as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream, "clients-secret") is None
            await changed(upstream)
            await until(lambda: kept.document["epochs"]["last"])
            said = [json.dumps(kept.document), repr(upstream), repr(upstream.identity)]
            said += [repr(upstream.epochs), repr(upstream.client)]
            assert not any("secret" in text for text in said)
            assert credential("clients-secret").hex() not in said[0]

    run(test)


def test_disk_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk does not fail the request that changes the weights."""

    class Full(Kept):
        def save(self, document: dict[str, Any]) -> None:
            raise OSError("no space left")

    async def test() -> None:
        async with serving() as script, asking(script.url, Full()) as upstream:
            assert await refusal(upstream) is None
            await changed(upstream)
            assert await refusal(upstream) is None

    run(test)
    assert "no space left" in caplog.text


# Whether it is there


def check(url: str, **kwargs: Any) -> State:
    async def ask() -> State:
        async with asyncio.timeout(SECONDS), asking(url, **kwargs) as upstream:
            state = await upstream.check()
            assert upstream.state is state
            return state

    return asyncio.run(ask())


@each("status", [200, 204, 301, 307, 401, 404, 500, 503])
def test_any_status_is_up(status: int) -> None:
    """A server that wants a key, or has no such route, would be reported as down."""

    async def test() -> None:
        says = dict.fromkeys(("/model_info", "/get_model_info", "/v1/models"), (status, b""))
        async with serving(says=says) as script, asking(script.url) as upstream:
            assert await upstream.check() is State.UP

    run(test)


@each("url", ["", "http://no-such-host.invalid:30000"])
def test_down(url: str) -> None:
    """A server that is not there is down, and does not fail the start."""
    assert check(url or dead_url()) is State.DOWN


@each(
    "data",
    [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 what\r\n\r\n", b"\0" * 70000, b"HTTP/1.1 200 X\r\nC"],
)
def test_not_http(data: bytes) -> None:
    """A wrong port (of SSH, say) would give a traceback in place of the warning."""
    with saying(data) as url:
        assert check(url) is State.DOWN


def test_look(clock: Clock) -> None:
    """Whether it is up is told from what is known, at once, and asked for beside if that is old."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await upstream.check() is State.UP
            asked = len(script.asked)
            upstream.seen(False)
            assert upstream.look(clock.now + 1) is State.DOWN
            await settled()
            assert len(script.asked) == asked
            clock.now += 6
            assert upstream.look(clock.now) is State.DOWN
            await until(lambda: upstream.state is State.UP)
            assert len(script.asked) == asked + 2

    run(test)


def test_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's proxy setting would make a local server look down."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead_url())
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    test_any_status_is_up()


@pytest.mark.parametrize(("insecure", "state"), [(False, State.DOWN), (True, State.UP)])
def test_self_signed(insecure: bool, state: State, tmp_path: Path) -> None:
    """A stranger's certificate would be believed, or `--insecure` not help."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            received.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n")
            await reader.read()
        writer.transport.abort()

    async def test() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self_signed(tmp_path))
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with asking(url, tls=tls_context(insecure=insecure)) as upstream:
            assert await upstream.check() is state
        assert len(received) == int(insecure)
        server.close()
        await settled()

    run(test)


def test_post() -> None:
    """An abort would not reach the upstream, or be refused for want of its key, or fail it."""

    async def test() -> None:
        async with serving(says={"/abort_request": (500, {})}) as script:
            fields = ((b"authorization", b"Bearer key"), (b"content-type", b"application/json"))
            async with asking(script.url) as upstream:
                await upstream.post("/abort_request", b'{"rid":"a"}', fields)
                (asked,) = script.asked
                assert (asked.method, asked.path, asked.json) == (
                    "POST", "/abort_request", {"rid": "a"}
                )  # fmt: skip
                assert asked.headers["authorization"] == "Bearer key"
        async with asking(dead_url()) as upstream:
            await upstream.post("/abort_request", b"{}", ())

    run(test)


# Several servers behind one URL


@asynccontextmanager
async def balancing(*urls: str) -> AsyncIterator[str]:
    """A balancer of connections: each new one goes to the next of these servers."""
    turns = itertools.cycle(urls)
    writers: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(next(turns))
        behind = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await settled()


OTHER_SERVERS: dict[str, tuple[dict[str, Any], dict[str, Any], Reason | None]] = {
    "another model": ({**INFO, "model_path": "x"}, ANOTHER, Reason.MODEL_CHANGED),
    "other weights": ({**INFO, "weight_version": "2"}, ANOTHER, Reason.MODEL_CHANGED),
    "the same model": (INFO, ANOTHER, None),
}


@each("case", OTHER_SERVERS)
def test_a_rolling_update(case: str) -> None:
    """An answer is only stored for the model that the server on its own connection has named,
    whatever the one says that is asked otherwise."""
    info, server, reason = OTHER_SERVERS[case]

    async def test() -> None:
        says = {"/model_info": (200, info), "/server_info": (200, server)}
        async with (
            serving() as old,
            serving(says=says) as new,
            balancing(old.url, new.url) as url,
            asking(url, interval=1e6) as upstream,
        ):
            assert await upstream.check() is State.UP  # by the old one
            assert infos(old) == SAID
            reasons = []
            for _ in range(2):
                async with upstream.client.open("POST", "/generate", (), PROBE) as response:
                    async for _ in response.pieces():
                        pass
                    greeting = response.greeting
                    # One more connection, to the other server.
                    async with upstream.client.open("POST", "/generate", (), PROBE) as other:
                        async for _ in other.pieces():
                            pass
                for one in (greeting, other.greeting):
                    reasons.append(await upstream.confirm(upstream.model_version, (), one))
            assert reasons == [reason, None] * 2 or reasons == [None, reason] * 2
            assert upstream.identity

    run(test)


def test_weights_that_change_elsewhere() -> None:
    """Where several servers have been seen behind one URL, each is asked behind each answer: that
    one has not changed says nothing of the others."""

    async def test() -> None:
        says = {"/model_info": (200, INFO), "/server_info": (200, {**SERVER, "random_seed": 2})}
        async with (
            serving() as one,
            serving(says=says) as two,
            balancing(one.url, two.url) as url,
            asking(url, interval=1e6) as upstream,
        ):
            assert await upstream.check() is State.UP  # by the first
            for reason in (None, None, Reason.MODEL_CHANGED):
                if reason:
                    two.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
                async with upstream.client.open("POST", "/generate", (), PROBE) as response:
                    async for _ in response.pieces():
                        pass
                found = await upstream.confirm(upstream.model_version, (), response.greeting)
                assert found is reason
            assert {asked.path for asked in two.asked} == {"/generate", *SAID}

    run(test)


def test_a_word_of_before_a_kept_connection_was_used() -> None:
    """What a server said on a connection before an answer counts only for as long as that very
    process is the one that is asked otherwise."""

    async def test() -> None:
        says = {"/model_info": (200, INFO), "/server_info": (200, ANOTHER)}
        async with (
            serving() as one,
            serving(says=says) as two,
            balancing(one.url, one.url, two.url) as url,
            asking(url, interval=1e6) as upstream,
        ):
            assert await upstream.check() is State.UP  # by the first

            async def answer() -> asyncio.Future[Any]:
                async with upstream.client.open("POST", "/generate", (), PROBE) as response:
                    async for _ in response.pieces():
                        pass
                return response.greeting

            assert await upstream.confirm(upstream.model_version, (), await answer()) is None
            one.asked[0].cut()
            while not infos(two):
                assert await upstream.check() is State.UP  # by the second
            one.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
            greeting = await answer()
            assert [asked.path for asked in two.asked if asked.method == "POST"] == []
            assert (
                await upstream.confirm(upstream.model_version, (), greeting) is Reason.MODEL_CHANGED
            )

    run(test)


def test_a_model_that_only_a_greeting_shows() -> None:
    """What the one process says on any connection is heard: a model that was there in between is
    noticed also where it is gone when upstream is asked otherwise."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=1e6) as upstream:
            assert await refusal(upstream) is None
            version = upstream.model_version
            script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
            async with upstream.client.open("POST", "/generate", (), PROBE) as response:
                async for _ in response.pieces():
                    pass
            await response.greeting
            script.says["/model_info"] = (200, INFO)
            assert await upstream.confirm(version, ()) is Reason.MODEL_CHANGED

    run(test)


def test_a_connection_that_is_not_kept() -> None:
    """Where a server hangs up behind each answer it cannot be asked there: what is said elsewhere
    has to do."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            async with upstream.client.open("POST", "/generate", (), PROBE) as response:
                async for _ in response.pieces():
                    pass
                script.hang_up()
                await settled()
            assert await upstream.confirm(upstream.model_version, (), response.greeting) is None

    run(test)

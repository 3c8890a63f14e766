"""Whether answers are of the model that they were asked of, against servers that change."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from sglang_cached_addon.core.policy import Reason, Restart
from sglang_cached_addon.upstream import Health, Upstream
from tests.tables import each
from tests.upstream.scripted import (
    ANOTHER,
    INFO,
    PROBE,
    SAID,
    SERVER,
    Clock,
    Script,
    admits,
    asking,
    bounded,
    changed,
    clock,
    credential_headers,
    greeting,
    infos,
    refusal,
    scripted,
    serving,
    settled,
    until,
)

__all__ = ["clock"]


@scripted()
async def test_confirm(script: Script, upstream: Upstream) -> None:
    """An answer costs one question, on the connection that shows that it is the same process; all
    of them where that is another one."""
    assert await refusal(upstream) is None
    version = upstream.model.version
    assert await upstream.confirming.confirm(version, ()) is None
    assert infos(script)[2:] == ["/model_info"]
    script.hang_up()
    await settled()
    asked = len(script.asked)
    assert await upstream.confirming.confirm(version, ()) is None
    assert script.paths[asked:] == ["/model_info", "/model_info", "/server_info"]
    assert await upstream.confirming.confirm(version, ()) is None
    assert len(script.asked) == asked + 4


@each("status", [400, 403, 404])
@scripted(keys={"a"}, interval=1000000.0)
async def test_confirm_for_a_key_that_may_not_know(
    script: Script, upstream: Upstream, status: int
) -> None:
    """What is said to a key that may generate, and not ask for the model, is nobody else's: the
    model is known as before, and its answers are stored."""
    assert await refusal(upstream, "a") is None
    version = upstream.model.version
    script.refused = {"b": status}
    assert await upstream.confirming.confirm(version, credential_headers("b")) is None
    assert (upstream.model.version, admits(upstream, "a")) == (version, True)


@scripted()
async def test_confirm_many(script: Script, upstream: Upstream) -> None:
    """Answers that come together share one question."""
    assert await refusal(upstream) is None
    asked = len(script.asked)
    reasons = await asyncio.gather(
        *(upstream.confirming.confirm(upstream.model.version, ()) for _ in range(99))
    )
    assert set(reasons) == {None}
    assert len(script.asked) == asked + 1


@scripted()
async def test_confirm_is_asked_after(script: Script, upstream: Upstream) -> None:
    """A word from before an answer came does not confirm it."""
    assert await refusal(upstream) is None
    version, asked = upstream.model.version, len(script.asked)
    script.may_answer.clear()
    first = asyncio.ensure_future(upstream.confirming.confirm(version, ()))
    await until(lambda: len(script.asked) == asked + 1)
    second = asyncio.ensure_future(upstream.confirming.confirm(version, ()))
    await settled()
    script.may_answer.set()
    script.may_answer.clear()  # for who waits now only
    assert await first is None
    script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
    script.may_answer.set()
    assert await second is Reason.MODEL_CHANGED


OTHERS: dict[str, dict[str, Any]] = {
    "another model": {"/model_info": {**INFO, "model_path": "other", "served_model_name": "other"}},
    "other weights": {"/model_info": {**INFO, "weight_version": "2"}},
    "other settings": {"/server_info": {**SERVER, "dtype": "half"}},
    "a restart": {"/server_info": {**SERVER, "random_seed": 2}},
}


@each("case", OTHERS)
@each("restart", Restart)
@bounded
async def test_another(case: str, restart: Restart, caplog: pytest.LogCaptureFixture) -> None:
    """What came of one model is not stored for another. A process that was only restarted is the
    same model, unless people say otherwise; that is said once."""
    caplog.set_level("INFO")
    caplog.clear()
    async with serving() as script:
        entered: list[str] = []
        async with asking(
            script.url,
            entered=lambda upstream: entered.append(upstream.model.fingerprint),
            restart=restart,
        ) as upstream:
            assert await refusal(upstream) is None
            version, before = upstream.model.version, upstream.model.fingerprint
            script.says |= {path: (200, said) for path, said in OTHERS[case].items()}
            if "/server_info" in OTHERS[case]:
                script.hang_up()  # as it does that has other settings
                await settled()
            assert await upstream.confirming.confirm(version, ()) is Reason.MODEL_CHANGED
            assert upstream.model.version > version
            is_same = case == "a restart" and restart is Restart.SAME
            assert (upstream.model.fingerprint == before) is is_same
            assert entered[-2:] == [before, upstream.model.fingerprint]
            assert await upstream.confirming.confirm(upstream.model.version, ()) is None
            assert caplog.text.count("was restarted") == is_same


@scripted(interval=1000000.0)
async def test_restart_behind_a_balancer(script: Script, upstream: Upstream) -> None:
    """A balancer's connection outlives the process behind it: after it has said that nobody is
    there, all is asked anew."""
    assert await refusal(upstream) is None
    await changed(upstream)
    await upstream.inquiry.check()
    version, before, says = upstream.model.version, upstream.model.fingerprint, script.says
    script.says = dict.fromkeys(says, (502, {}))
    await upstream.inquiry.check()
    script.says = {**says, "/server_info": (200, ANOTHER)}
    assert await upstream.confirming.confirm(version, ()) is Reason.MODEL_CHANGED
    assert upstream.model.fingerprint != before


@scripted(interval=1000000.0)
async def test_watch(script: Script, upstream: Upstream, clock: Clock) -> None:
    """A model that comes and goes during a generation is noticed."""
    assert await refusal(upstream) is None
    asked, version = len(script.asked), upstream.model.version
    upstream.confirming.watch(())
    await until(lambda: len(script.asked) == asked + 1)
    clock.now += 1
    script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
    upstream.confirming.watch(())
    await until(lambda: upstream.model.version > version)
    version = upstream.model.version
    script.says["/model_info"] = (200, INFO)
    upstream.inquiry.doubt()
    await until(lambda: upstream.model.version > version)


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


OTHER_SERVERS: dict[str, tuple[tuple[int, dict[str, Any]], Reason | None]] = {
    "another model": ((200, {**INFO, "model_path": "x"}), Reason.MODEL_CHANGED),
    "other weights": ((200, {**INFO, "weight_version": "2"}), Reason.MODEL_CHANGED),
    "the same model": ((200, INFO), None),
    "one that does not say": ((503, {}), Reason.UNCONFIRMED),
}


@each("case", OTHER_SERVERS)
@bounded
async def test_a_rolling_update(case: str) -> None:
    """An answer is only stored for the model that the server on its own connection has named,
    whatever the one says that is asked otherwise."""
    info, reason = OTHER_SERVERS[case]
    says = {"/model_info": info, "/server_info": (200, ANOTHER)}
    async with (
        serving() as old,
        serving(says=says) as new,
        balancing(old.url, new.url) as url,
        asking(url, interval=1e6) as upstream,
    ):
        assert await upstream.inquiry.check() is Health.UP  # by the old one
        assert infos(old) == SAID
        reasons = []
        for _ in range(2):
            async with upstream.client.open("POST", "/generate", (), PROBE) as response:
                async for _ in response.pieces():
                    pass
                # One more connection, to the other server.
                other = await greeting(upstream)
            for one in (response.greeting, other):
                reasons.append(await upstream.confirming.confirm(upstream.model.version, (), one))
        assert {*reasons[:2]} == {*reasons[2:]} == {reason, None}
        assert upstream.model.identity


@bounded
async def test_weights_that_change_elsewhere() -> None:
    """Where several servers have been seen behind one URL, each is asked behind each answer: that
    one has not changed says nothing of the others."""
    says = {"/model_info": (200, INFO), "/server_info": (200, {**SERVER, "random_seed": 2})}
    async with (
        serving() as one,
        serving(says=says) as two,
        balancing(one.url, two.url) as url,
        asking(url, interval=1e6) as upstream,
    ):
        assert await upstream.inquiry.check() is Health.UP  # by the first
        for reason in (None, None, Reason.MODEL_CHANGED):
            if reason:
                two.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
            said = await greeting(upstream)
            assert await upstream.confirming.confirm(upstream.model.version, (), said) is reason
        assert {asked.path for asked in two.asked} == {"/generate", *SAID}


@bounded
async def test_a_word_of_before_a_kept_connection_was_used() -> None:
    """What a server said on a connection before an answer counts only for as long as that very
    process is the one that is asked otherwise."""
    says = {"/model_info": (200, INFO), "/server_info": (200, ANOTHER)}
    async with (
        serving() as one,
        serving(says=says) as two,
        balancing(one.url, one.url, two.url) as url,
        asking(url, interval=1e6) as upstream,
    ):
        assert await upstream.inquiry.check() is Health.UP  # by the first
        said = await greeting(upstream)
        assert await upstream.confirming.confirm(upstream.model.version, (), said) is None
        one.asked[0].cut()
        while not infos(two):
            assert await upstream.inquiry.check() is Health.UP  # by the second
        one.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
        said = await greeting(upstream)
        assert [asked.path for asked in two.asked if asked.method == "POST"] == []
        reason = await upstream.confirming.confirm(upstream.model.version, (), said)
        assert reason is Reason.MODEL_CHANGED


@scripted(interval=1000000.0)
async def test_a_model_that_only_a_greeting_shows(script: Script, upstream: Upstream) -> None:
    """What the one process says on any connection is heard: a model that was there in between is
    noticed also where it is gone when upstream is asked otherwise."""
    assert await refusal(upstream) is None
    version = upstream.model.version
    script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
    await (await greeting(upstream))
    script.says["/model_info"] = (200, INFO)
    assert await upstream.confirming.confirm(version, ()) is Reason.MODEL_CHANGED


@scripted()
async def test_a_connection_that_is_not_kept(script: Script, upstream: Upstream) -> None:
    """Where a server hangs up behind each answer it cannot be asked there: what is said elsewhere
    has to do."""
    assert await refusal(upstream) is None
    async with upstream.client.open("POST", "/generate", (), PROBE) as response:
        async for _ in response.pieces():
            pass
        script.hang_up()
        await settled()
    assert await upstream.confirming.confirm(upstream.model.version, (), response.greeting) is None

"""What upstream says when it is asked who it is, and how long that counts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.upstream import Health, Upstream
from sglang_cached_addon.upstream.belief import RETRY_SECONDS
from sglang_cached_addon.wire.tls import tls_context
from tests.certificates import self_signed
from tests.ports import dead_url
from tests.tables import each
from tests.upstream.scripted import (
    ANOTHER,
    INFO,
    MODELS,
    PROBE,
    SAID,
    SECONDS,
    SERVER,
    Clock,
    Script,
    admits,
    asker,
    asking,
    bounded,
    clock,
    credential_headers,
    infos,
    probes,
    refusal,
    scripted,
    serving,
    settled,
    until,
)

__all__ = ["clock"]

OK, NONE, BROKEN, CLOSED = 200, 404, 500, 401
NO_MODEL, UNAUTHORIZED = Reason.NO_MODEL, Reason.UNAUTHORIZED


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
    "busy": ({"/model_info": (429, {})}, NO_MODEL),
    "elsewhere": ({"/model_info": (307, {})}, NO_MODEL),
}


@each("case", SAYS)
@bounded
async def test_what_it_says(case: str) -> None:
    """A client is let in where upstream names its model, and answers a probe with a 200."""
    says, reason = SAYS[case]
    async with serving(says=says) as script, asking(script.url) as upstream:
        assert upstream.inquiry.health is Health.UNKNOWN
        assert not admits(upstream)
        assert await refusal(upstream) is reason
        assert admits(upstream) is (reason is None)
        assert upstream.inquiry.health is Health.UP
        is_known = reason is None or case == "OpenAI's, closed"
        assert (upstream.model.identity is not None) is is_known
        assert bool(upstream.model.fingerprint) is is_known
        confirmed = await upstream.confirming.confirm(upstream.model.version, ())
        assert confirmed is (None if is_known else Reason.UNCONFIRMED)
        if upstream.model.identity:
            assert upstream.model.identity.model == "m"
            assert upstream.model.names == {upstream.model.fingerprint: "m"}


@bounded
async def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an upstream that is not there, or says nothing, no call waits for long, and later ones not
    at all."""
    async with serving() as script:
        script.may_answer.clear()
        for url, state in ((dead_url(), Health.DOWN), (script.url, Health.UNKNOWN)):
            if state is Health.UNKNOWN:
                monkeypatch.setattr("sglang_cached_addon.upstream.inquiry.FIRST_SECONDS", 0.1)
                monkeypatch.setattr("sglang_cached_addon.upstream.asking.PATIENCE_SECONDS", 0.2)
            async with asking(url) as upstream:
                assert await refusal(upstream) is NO_MODEL
                assert not admits(upstream)
                confirmed = await upstream.confirming.confirm(upstream.model.version, ())
                assert confirmed is Reason.UNCONFIRMED
                assert upstream.inquiry.health is state


@scripted()
async def test_shared_question(script: Script, upstream: Upstream) -> None:
    """A crowd at the start is one question; one that leaves takes nothing from the others."""
    script.may_answer.clear()
    asking_all = [asyncio.ensure_future(refusal(upstream)) for _ in range(100)]
    await until(lambda: script.asked)
    asking_all[0].cancel()
    script.may_answer.set()
    assert set(await asyncio.gather(*asking_all[1:])) == {None}
    assert infos(script) == SAID
    assert probes(script) == [None]
    assert asking_all[0].cancelled()


@scripted(keys={"good"})
async def test_refusal_is_not_shared(script: Script, upstream: Upstream) -> None:
    """One with a bad key who asks first is no reason to refuse the others."""
    script.may_answer.clear()
    keys = ["bad", "good", None, "good", "bad", "good"]
    asked = [asyncio.ensure_future(refusal(upstream, key)) for key in keys]
    await until(lambda: script.asked)
    script.may_answer.set()
    reasons = await asyncio.gather(*asked)
    assert reasons == [None if k == "good" else UNAUTHORIZED for k in keys]


@each("what", ["silent", "5xx", "down"])
@scripted(interval=0.1)
async def test_a_hit_waits_for_nothing(
    script: Script, upstream: Upstream, what: str, clock: Clock
) -> None:
    """What upstream said last counts while it does not say anything else, however long that is:
    no call waits for it."""
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
        if what == "5xx":  # it is asked again, and what it says is heard
            await until(lambda: upstream.inquiry.belief.ask_at == clock.now + RETRY_SECONDS)
        await settled()


@scripted(interval=0.1)
async def test_asked_beside(script: Script, upstream: Upstream, clock: Clock) -> None:
    """Upstream is asked again before its word is old, on one connection; a pause of the client's
    does not end that, and another model is noticed though nobody asks for anything."""
    assert await refusal(upstream) is None
    assert infos(script) == SAID
    version = upstream.model.version
    for _ in range(3):
        asked = len(infos(script))
        clock.now += 1
        await until(lambda: len(infos(script)) >= asked + 2)  # noqa: B023
    script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
    clock.now += 1
    await until(lambda: upstream.model.version > version)
    assert len({a.connection for a in script.asked if a.body != PROBE}) == 1


@scripted(interval=0.1)
async def test_a_long_pause(
    script: Script, upstream: Upstream, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes after the last call upstream is left alone. The next call gives it a moment to
    speak, and is then answered by what was known."""
    assert await refusal(upstream) is None
    await clock.seen_later(601)
    upstream.heard(asker("key"), credential_headers("key"), 200, clock.now)
    script.may_answer.clear()
    assert not admits(upstream, "key")
    monkeypatch.setattr("sglang_cached_addon.upstream.inquiry.FIRST_SECONDS", 2 * SECONDS)
    began = asyncio.get_running_loop().time()
    assert await refusal(upstream, "key") is None
    assert asyncio.get_running_loop().time() - began > 0.2
    clock.now += 0.3
    assert admits(upstream, "key")
    script.may_answer.set()


@each("said", [(200, {**INFO, "model_path": "x"}), (404, {})])
@scripted(interval=0.1)
async def test_a_word_after_a_pause(
    script: Script, upstream: Upstream, said: tuple[int, Any], clock: Clock
) -> None:
    """Where upstream says in that moment that it is another model, nothing of the former is
    given."""
    assert await refusal(upstream) is None
    await clock.seen_later(601)
    version = upstream.model.version
    script.says["/model_info"] = said
    await refusal(upstream)
    assert upstream.model.version > version


@scripted(keys={"a"}, interval=0.1)
async def test_a_credential_that_may_not_know(
    script: Script, upstream: Upstream, clock: Clock
) -> None:
    """A key that may generate, and is refused on the routes that tell of the model, does not keep
    those from being asked with a key that may."""
    assert await refusal(upstream, "a") is None
    script.keys = {"a", "b"}
    assert await refusal(upstream, "b") is None
    script.keys = {"a"}
    for _ in range(3):
        asked = len(infos(script))
        clock.now += 1
        await until(lambda: len(infos(script)) >= asked + 2)  # noqa: B023
        assert admits(upstream, "a")


@each("was_away", [True, False])
@scripted(keys={"a"}, interval=1000000.0)
async def test_another_process(script: Script, upstream: Upstream, was_away: bool) -> None:
    """Whom a process has accepted is not known of the one after it; nor is it of one that was away,
    though it says that it is the same."""
    assert await refusal(upstream, "a") is None
    if was_away:
        script.stop()
        await settled()
        assert await upstream.inquiry.check() is Health.DOWN
        await script.start()
    else:
        script.says["/server_info"] = (200, ANOTHER)
    assert admits(upstream, "a")
    assert await upstream.inquiry.check() is Health.UP
    assert not admits(upstream, "a")


@bounded
async def test_asked_by_no_other_call(clock: Clock) -> None:
    """What upstream says instead of its name is shared for a second by the calls that come then."""
    async with serving(says={"/model_info": (500, {})}) as script, asking(script.url) as it:
        for asked, later in ((1, 0), (1, 0.9), (2, 0.2)):
            clock.now += later
            assert await refusal(it) is NO_MODEL
            assert len(script.asked) == asked


@scripted(interval=0.1)
async def test_a_slow_one_is_not_down(
    script: Script, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """A key that was taken back does not come back to life because upstream is slow."""
    assert await refusal(upstream, "a") is None
    monkeypatch.setattr("sglang_cached_addon.upstream.asking.PATIENCE_SECONDS", 0.05)
    upstream.heard(asker("a"), credential_headers("a"), 401, clock.now)
    script.may_answer.clear()
    clock.now += 400
    admits(upstream)
    await until(lambda: upstream.inquiry.health is Health.UNKNOWN)
    assert not admits(upstream, "a")


@each("status", [200, 204, 301, 307, 401, 404, 500, 503])
@bounded
async def test_any_status_is_up(status: int) -> None:
    """A server that wants a key, or has no such route, is up."""
    says = dict.fromkeys(("/model_info", "/get_model_info", "/v1/models"), (status, b""))
    async with serving(says=says) as script, asking(script.url) as upstream:
        assert await upstream.inquiry.check() is Health.UP


NO_HTTP = [
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 what\r\n\r\n",
    b"\0" * 70000,
    b"HTTP/1.1 200 X\r\nC",
]


@bounded
async def test_down() -> None:
    """A server that is not there, or a wrong port (of SSH, say), is an upstream that is down, and
    does not fail the start."""
    said = iter(NO_HTTP)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(next(said))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wrong = [f"http://127.0.0.1:{port}"] * len(NO_HTTP)
    for url in (dead_url(), "http://no-such-host.invalid:30000", *wrong):
        async with asking(url) as upstream:
            assert await upstream.inquiry.check() is upstream.inquiry.health is Health.DOWN
    assert not [*said]
    server.close()


@scripted()
async def test_look(script: Script, upstream: Upstream, clock: Clock) -> None:
    """Whether it is up is told from what is known, at once, and asked for beside if that is old."""
    assert await upstream.inquiry.check() is Health.UP
    asked = len(script.asked)
    upstream.seen(False)
    assert upstream.inquiry.look(clock.now + 1) is Health.DOWN
    await settled()
    assert len(script.asked) == asked
    clock.now += 6
    assert upstream.inquiry.look(clock.now) is Health.DOWN
    await until(lambda: upstream.inquiry.health is Health.UP)
    assert len(script.asked) == asked + 2
    upstream.seen(False)
    upstream.heard(asker(), (), 500, clock.now)
    assert upstream.inquiry.health is Health.UP


def test_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's proxy setting does not make a local server look down."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead_url())
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    test_any_status_is_up()


@each(("insecure", "state"), [(False, Health.DOWN), (True, Health.UP)])
@bounded
async def test_self_signed(insecure: bool, state: Health, tmp_path: Path) -> None:
    """A stranger's certificate is believed with `--insecure` alone."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            received.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n")
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self_signed(tmp_path))
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asking(url, tls=tls_context(insecure=insecure)) as upstream:
        assert await upstream.inquiry.check() is state
    assert len(received) == int(insecure)
    server.close()
    await settled()

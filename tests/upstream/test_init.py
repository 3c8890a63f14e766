"""Whom upstream lets in, against servers that say what they are told to."""

from __future__ import annotations

import time

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.upstream import Upstream
from tests.ports import dead_url
from tests.tables import each
from tests.upstream.scripted import (
    INFO,
    MODELS,
    PROBE,
    Clock,
    Script,
    admits,
    asker,
    asking,
    bounded,
    clock,
    probes,
    refusal,
    scripted,
    serving,
    settled,
    until,
)

__all__ = ["clock"]

NO_MODEL, UNAUTHORIZED = Reason.NO_MODEL, Reason.UNAUTHORIZED


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
@bounded
async def test_keys(case: str, path: str, is_open: str) -> None:
    """Only those are let in whom upstream lets generate, whoever asks first, and whatever upstream
    tells anybody about itself."""
    order, welcome = ORDERS[case]
    says = {path: (200, INFO if path == "/model_info" else MODELS)}
    async with (
        serving(says=says, keys={"good", "other"}, open_paths=OPEN[is_open]) as script,
        asking(script.url) as upstream,
    ):
        for key in [*order, *order]:
            reason = None if key in welcome else UNAUTHORIZED
            assert await refusal(upstream, key) is reason, key
        assert upstream.gate.asks_keys is (
            True if is_open != "nothing" or None in probes(script) else None
        )


@each("status", [204, 302, 400, 401, 403, 404, 422, 429, 500, 503])
@each("key", [None, "key"])
@bounded
async def test_only_a_200_lets_in(status: int, key: str | None) -> None:
    """Whatever else upstream says to a probe, it does not say that its sender may generate. It is
    not asked with each call, either."""
    async with serving(probed=status) as script, asking(script.url) as upstream:
        for _ in range(3):
            assert await refusal(upstream, key) is UNAUTHORIZED
        assert len(probes(script)) == 1
        assert upstream.gate.asks_keys is (True if key is None and status in (401, 403) else None)


@scripted(keys={"good"})
async def test_a_probe_shows_nothing_else(script: Script, upstream: Upstream) -> None:
    """What a client sends besides its credential may be one that only upstream knows as such: a
    client that shows no credential is not let in by its own 200, but by a probe that is bare."""
    assert await refusal(upstream, "good") is None
    upstream.heard(asker(None), (), 200, time.monotonic())
    assert await refusal(upstream) is UNAUTHORIZED
    (bare,) = [a for a in script.asked if a.body == PROBE and "authorization" not in a.headers]
    assert bare.headers.keys() == {"host", "content-type", "content-length", "accept-encoding"}


@scripted(keys={"a", "b"}, interval=0.1)
async def test_renewed_beside(script: Script, upstream: Upstream, clock: Clock) -> None:
    """Who is accepted stays so without waiting, while upstream still accepts it and soon not any
    more where it does not; for as long as it is slow to say, up to five minutes."""
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


@bounded
async def test_post() -> None:
    """An abort reaches upstream with the client's credential; its failure is upstream's to log."""
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

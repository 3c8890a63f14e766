"""Equal calls at the same time, over real sockets: one upstream call, and nobody worse off."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import (
    CHAT,
    COMPLETIONS,
    DONE,
    FORMS,
    GENERATE,
    Stream,
    asking,
    events,
    forms,
    heard,
    paths,
    post,
    sampled,
)
from tests.e2e.conftest import StartFront
from tests.simulator import Fault, Profile, Simulator, running

# Each test has prompts of its own.
pytestmark = pytest.mark.shared

CLIENTS = 1000

SLOW_SECONDS = 25.0
"""How long an upstream takes that is slow to say who it is; nobody waits for that, and no test."""


@pytest.fixture(scope="module")
def files() -> Iterator[None]:
    """Enough descriptors for a thousand connections, here and in the proxy."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8 * CLIENTS if hard == resource.RLIM_INFINITY else min(hard, 8 * CLIENTS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def shared(files: None, upstream: Simulator, start_front: StartFront) -> Proxy:
    return start_front(upstream.url)


@pytest.fixture
def text(request: pytest.FixtureRequest) -> str:
    """A prompt that no other test has."""
    return request.node.name


def finish(answer: requests.Response) -> str:
    """How a sample of `/generate` ended, and the client's id of it."""
    assert answer.status_code == 200
    if answer.headers["content-type"] != "application/json":
        *_, last, done = events(answer)
        assert done == DONE
        meta = json.loads(last[6:])["meta_info"]
    else:
        meta = answer.json()["meta_info"]
    return f"{meta['finish_reason']['type']} of {meta['id']}"


@contextmanager
def paused(upstream: Simulator) -> Iterator[None]:
    """Meanwhile upstream lets its calls wait."""
    requests.post(f"{upstream.url}/pause_generation", json={"mode": "retract"}, timeout=30)
    try:
        yield
    finally:
        requests.post(f"{upstream.url}/continue_generation", json={}, timeout=30)


def kinds(answers: list[Future[requests.Response]]) -> dict[str, int]:
    return Counter(answer.result().headers["X-Cache"] for answer in answers)


def waiting(proxy: Proxy, followers: int) -> None:
    """Returns when so many wait for others."""
    until(lambda: proxy.stats()["followers"] == followers)


def is_idle(stats: dict[str, Any]) -> bool:
    return not (stats["followers"] or stats["fetches_in_flight"] or stats["streams_in_flight"])


def risen(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """The counters that are not what they were."""
    return {
        name: after[name] - value
        for name, value in before.items()
        if isinstance(value, int) and after[name] != value and name != "pending_writes"
    }


class Crowd(ThreadPoolExecutor):
    """Clients of a proxy, each in a thread of its own."""

    def __init__(self, proxy: Proxy, upstream: Simulator, text: str = "") -> None:
        super().__init__(32)
        self.proxy, self.upstream = proxy, upstream
        self.text = text
        """A prompt that no other test has."""

    def ask(self, path: str, body: Any, **kwargs: Any) -> Future[requests.Response]:
        return self.submit(post, self.proxy, path, body, **kwargs)

    def lead(self, path: str, body: Any, **kwargs: Any) -> Future[requests.Response]:
        """One whose call upstream holds back."""
        others = self.upstream.waiting
        self.upstream.faults.append(Fault.HOLD)
        answer = self.ask(path, body, **kwargs)
        until(lambda: self.upstream.waiting == others + 1)
        return answer


@pytest.fixture
def crowd(proxy: Proxy, simulator: Simulator, text: str) -> Iterator[Crowd]:
    with Crowd(proxy, simulator, text) as pool:
        yield pool


# One upstream call


@paths
@forms
def test_identical(path: str, form: Any, crowd: Crowd) -> None:
    """Equal calls at the same time, as streams and in JSON, are one generation, and one answer."""
    body = asking(path, crowd.text, **form)
    bodies = [asking(path, crowd.text, **other) for other in FORMS.values()]
    before = crowd.proxy.stats()
    answers = [crowd.lead(path, body), *(crowd.ask(path, one) for one in bodies * 2)]
    waiting(crowd.proxy, 4)
    crowd.upstream.release()
    assert kinds(answers) == {"MISS": 1, "COLLAPSED": 4}
    found = [answer.result() for answer in answers]
    assert len({str(heard(path, answer)) for answer in found}) == 1
    # Each event of `/generate` has all of the text: who is behind gets the newest.
    last = slice(-2 if path == GENERATE else None, None)
    assert len({b"".join(events(a)[last]) if DONE in a.content else a.content for a in found}) == 2
    assert len(sampled(crowd.upstream)) == 1
    status = answers[1].result().headers["Cache-Status"]
    named = re.fullmatch(r'sglang-cached; fwd=miss; collapsed; key="([0-9a-f]{32})"', status)
    assert named
    assert f'key="{named[1]}"' in answers[0].result().headers["Cache-Status"]
    after = crowd.proxy.stats()
    assert is_idle(after)
    assert risen(before, after) == {
        "num_keys": 1, "total_responses": 1, "misses": 1, "collapsed": 4,
        "samples_from_cache": 4, "samples_from_upstream": 1, "tokens_saved": 32,
    }  # fmt: skip
    assert post(crowd.proxy, path, body).headers["X-Cache"] == "HIT"


@pytest.mark.one_way
def test_as_long_as_it_takes(simulator: Simulator, start_proxy: StartProxy, text: str) -> None:
    """Who waits goes on waiting, longer than upstream is believed in without a question."""
    proxy = start_proxy(simulator.url, "--poll-seconds", "0.1")
    with Crowd(proxy, simulator) as crowd:
        body = asking(GENERATE, text)
        answers = [crowd.lead(GENERATE, body), crowd.ask(GENERATE, body)]
        waiting(proxy, 1)
        asked = len(simulator.received)
        # Others keep the upstream being asked who it is.
        numbers = iter(range(1000))
        until(lambda: (
            post(proxy, GENERATE, asking(GENERATE, f"{text} {next(numbers)}")),
            sum(r.path == "/model_info" for r in simulator.received[asked:]) > 20,
        )[-1])  # fmt: skip
        assert proxy.stats()["followers"] == 1
        simulator.release()
        assert kinds(answers) == {"MISS": 1, "COLLAPSED": 1}


@pytest.mark.one_way
@paths
@forms
def test_most_first(path: str, form: Any, crowd: Crowd) -> None:
    """Calls that lack 1, 2, 4 and 3 samples of one pool share what is generated."""
    stored = heard(path, post(crowd.proxy, path, asking(path, crowd.text)))[0]
    sizes = [2, 1 + 1, 4, 3]
    leader = crowd.lead(path, asking(path, crowd.text, sizes[0], **form))
    answers = [crowd.ask(path, asking(path, crowd.text, n, **form)) for n in sizes[1:]]
    waiting(crowd.proxy, 3)
    crowd.upstream.faults.append(Fault.HOLD)
    crowd.upstream.release()
    assert leader.result().headers["X-Cache"] == "PARTIAL"
    waiting(crowd.proxy, 1)  # the last but one is answered, or reads along
    until(lambda: crowd.upstream.waiting == 1)
    crowd.upstream.release()
    found = [heard(path, answer.result()) for answer in [leader, *answers]]
    assert [len(one) for one in found] == sizes
    whole = found[2]
    assert whole[0] == stored
    assert len(set(whole.values())) == 4
    # As if they had come one after the other: each has the first of the same samples.
    for one in found:
        assert one == {k: whole[k] for k in one}
    asked = [b.get("n") or b["sampling_params"]["n"] for b in sampled(crowd.upstream)]
    assert asked == [1, 1, 2]
    assert crowd.upstream.running == 0


@pytest.mark.one_way
@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS])
@forms
def test_item_of_a_batch(path: str, form: Any, crowd: Crowd) -> None:
    """A batch takes what is on its way for a call, and a call what is on its way for a batch."""
    alone = crowd.lead(path, asking(path, f"{crowd.text} a"))
    batch = crowd.ask(path, asking(path, [f"{crowd.text} a", f"{crowd.text} b"], **form))
    waiting(crowd.proxy, 1)
    if not form:
        # What nobody else fetches is fetched at once.
        until(lambda: len(sampled(crowd.upstream)) == 2)
    crowd.upstream.release()
    said = heard(path, batch.result())
    assert said[0] == heard(path, alone.result())[0]
    assert len(sampled(crowd.upstream)) == 2
    name = "text" if path == GENERATE else "prompt"
    assert sampled(crowd.upstream)[1][name] in ([f"{crowd.text} b"], f"{crowd.text} b")
    # The other way round.
    batch = crowd.lead(path, asking(path, [f"{crowd.text} c", f"{crowd.text} d"], **form))
    alone = crowd.ask(path, asking(path, f"{crowd.text} d"))
    waiting(crowd.proxy, 1)
    crowd.upstream.release()
    assert alone.result().headers["X-Cache"] == "COLLAPSED"
    assert heard(path, alone.result())[0] == heard(path, batch.result())[1]
    assert len(sampled(crowd.upstream)) == 3


@pytest.mark.one_way
def test_a_thousand(simulator: Simulator, proxy: Proxy, text: str) -> None:
    """A crowd is one call for upstream, whether it wants streams or not."""
    bodies = [asking(CHAT, text, **form) for form in FORMS.values()]
    before = proxy.stats()

    async def run() -> list[tuple[int, str, bytes]]:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
        ) as session:

            async def ask(body: Any) -> tuple[int, str, bytes]:
                async with session.post(proxy.url + CHAT, json=body) as answer:
                    return answer.status, answer.headers["X-Cache"], await answer.read()

            asks = [asyncio.create_task(ask(bodies[i % 2])) for i in range(CLIENTS)]
            await asyncio.to_thread(waiting, proxy, CLIENTS - 1)
            await asyncio.to_thread(until, lambda: simulator.waiting)
            simulator.release()
            return await asyncio.gather(*asks)

    simulator.faults.append(Fault.HOLD)
    answers = asyncio.run(run())
    assert Counter((status, kind) for status, kind, _ in answers) == {
        (200, "MISS"): 1, (200, "COLLAPSED"): CLIENTS - 1
    }  # fmt: skip
    assert len({answer for *_, answer in answers}) == len(FORMS)
    assert len(sampled(simulator)) == 1
    after = proxy.stats()
    assert is_idle(after)
    assert risen(before, after)["collapsed"] == CLIENTS - 1


# When something goes wrong


@forms
@pytest.mark.parametrize("path", [GENERATE, CHAT])
def test_leader_leaves(path: str, form: Any, crowd: Crowd) -> None:
    """What is generated for others, too, goes on when the first who wanted it leaves."""
    body, aborted = asking(path, crowd.text, **form), crowd.upstream.aborted
    crowd.upstream.faults.append(Fault.HOLD)
    with closing(Stream(crowd.proxy, path, body)):
        until(lambda: crowd.upstream.waiting == 1)
        answers = [crowd.ask(path, body) for _ in range(3)]
        waiting(crowd.proxy, 3)
    waiting(crowd.proxy, 2)
    crowd.upstream.release()
    assert kinds(answers) == {"COLLAPSED": 3}
    assert (len(sampled(crowd.upstream)), crowd.upstream.aborted) == (1, aborted)
    assert post(crowd.proxy, path, body).headers["X-Cache"] == "HIT"


@forms
def test_follower_leaves(form: Any, crowd: Crowd) -> None:
    """One who leaves neither takes others along nor is waited for."""
    body = asking(CHAT, crowd.text, **form)
    answers = [crowd.lead(CHAT, body)]
    with closing(Stream(crowd.proxy, CHAT, body)):
        answers.append(crowd.ask(CHAT, body))
        waiting(crowd.proxy, 2)
    waiting(crowd.proxy, 1)
    crowd.upstream.release()
    assert kinds(answers) == {"MISS": 1, "COLLAPSED": 1}
    assert is_idle(crowd.proxy.stats())


@forms
def test_all_leave(form: Any, simulator: Simulator, proxy: Proxy, text: str) -> None:
    """When all have left, upstream is told to stop."""
    body, aborted = asking(CHAT, text, **form), simulator.aborted
    simulator.faults.append(Fault.HOLD)
    with closing(Stream(proxy, CHAT, body)):
        until(lambda: simulator.waiting == 1)
        with closing(Stream(proxy, CHAT, body)):
            waiting(proxy, 1)
    until(lambda: simulator.aborted == aborted + 1)
    until(lambda: is_idle(proxy.stats()))
    assert post(proxy, CHAT, body).headers["X-Cache"] == "MISS"


FAILURES = {Fault.ERROR_503: ["503"] * 2, Fault.CUT: ["502", "cut"], Fault.ABORT: ["abort"] * 2}
"""What a client sees of it, without a stream and with one."""


@forms
@pytest.mark.parametrize("fault", FAILURES)
def test_failures(fault: Fault, form: Any, start_proxy: StartProxy, text: str) -> None:
    """Of twelve who wait for what fails, all are told."""
    body = asking(GENERATE, text, **form)
    with running(Profile()) as upstream:
        proxy = start_proxy(upstream.url)
        upstream.faults.extend([fault] * 24)
        with Crowd(proxy, upstream) as crowd, paused(upstream):
            answers = [crowd.ask(GENERATE, body) for _ in range(12)]
            if fault is not Fault.ERROR_503:  # which upstream says at once
                waiting(proxy, 11)
        assert Counter(end(answer) for answer in answers) == {FAILURES[fault][bool(form)]: 12}
        if fault is Fault.CUT:
            assert len(sampled(upstream)) == 1
        assert is_idle(proxy.stats())


def end(answer: Future[requests.Response]) -> str:
    """How a call ended, for who counts."""
    try:
        found = answer.result()
    except requests.RequestException:
        return "cut"
    return finish(found).partition(" ")[0] if found.ok else str(found.status_code)


@forms
def test_upstream_goes(form: Any, start_proxy: StartProxy, text: str) -> None:
    """Who waits for an upstream that is no more is told so."""
    body = asking(CHAT, text, **form)
    with running(Profile()) as upstream:
        proxy = start_proxy(upstream.url)
        crowd = Crowd(proxy, upstream)
        answers = [crowd.lead(CHAT, body), *(crowd.ask(CHAT, body) for _ in range(5))]
        waiting(proxy, 5)
    with crowd:
        for answer in answers:
            assert answer.result().status_code == 502
            assert upstream.url in answer.result().json()["error"]["message"]
        assert kinds(answers) == {"MISS": 1, "COLLAPSED": 5}
    assert is_idle(proxy.stats())


@pytest.mark.one_way
@pytest.mark.parametrize("fault", [Fault.TOO_FEW, Fault.ABORT])
@forms
def test_never_stored(form: Any, fault: Fault, start_proxy: StartProxy, text: str) -> None:
    """Those who wait for what can never be stored go on at the same time."""
    body = asking(GENERATE, text, 2, **form)
    with running(Profile()) as upstream:
        proxy = start_proxy(upstream.url)
        upstream.faults += [fault, *[Fault.HOLD] * 5]
        with Crowd(proxy, upstream) as crowd:
            with paused(upstream):
                leader = crowd.ask(GENERATE, body)
                until(lambda: upstream.parked)
                followers = [crowd.ask(GENERATE, asking(GENERATE, text, 2)) for _ in range(5)]
                waiting(proxy, 5)
            assert leader.result().headers["X-Cache"] == "MISS"
            until(lambda: upstream.waiting == 5)
            upstream.release()
            assert kinds(followers) == {"MISS": 5}
            assert all(answer.result().status_code == 200 for answer in followers)
        assert is_idle(proxy.stats())


@pytest.mark.one_way
@forms
def test_refusals_are_personal(form: Any, start_proxy: StartProxy, text: str) -> None:
    """One with a bad key neither gets the answer of one with a good key nor spoils it."""
    body = asking(CHAT, text, **form)
    good, bad = ({"headers": {"Authorization": f"Bearer {key}"}} for key in ("good", "bad"))
    with running(Profile(api_key="good")) as upstream:
        proxy = start_proxy(upstream.url)
        with Crowd(proxy, upstream) as crowd:
            assert crowd.ask(CHAT, body, **bad).result().status_code == 401
            answers = [crowd.lead(CHAT, body, **good), crowd.ask(CHAT, body, **good)]
            waiting(proxy, 1)
            refused = [crowd.ask(CHAT, body, **who) for who in (bad, bad, {})]
            for answer in refused:
                assert answer.result().status_code == 401
                assert answer.result().headers["X-Cache"] == "BYPASS"
            assert (proxy.stats()["followers"], upstream.waiting) == (1, 1)
            upstream.release()
            assert kinds(answers) == {"MISS": 1, "COLLAPSED": 1}
            assert crowd.ask(CHAT, body, **bad).result().status_code == 401


def test_leader_that_does_not_read(crowd: Crowd) -> None:
    """A client on a slow line does not set the pace for others who want the same."""
    body = asking(GENERATE, crowd.text, tokens=1200, stream=True)
    crowd.upstream.faults.append(Fault.HOLD)
    with closing(Stream(crowd.proxy, GENERATE, body)) as leader:
        leader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        until(lambda: crowd.upstream.waiting == 1)
        follower = crowd.ask(GENERATE, body)
        waiting(crowd.proxy, 1)
        crowd.upstream.release()
        assert follower.result().headers["X-Cache"] == "COLLAPSED"
        leader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        chunks = leader.begin().rest()
        # It was behind: what had been superseded by the time it read was left out.
        assert len(chunks) < 1200
        assert chunks[-2:] == events(follower.result())[-2:]
    assert len(sampled(crowd.upstream)) == 1


@pytest.mark.one_way
@forms
def test_slow_word(form: Any, start_proxy: StartProxy, text: str) -> None:
    """Neither who waits for an answer waits for upstream to say who it is, nor do hits while
    something is being replaced."""
    with running(Profile()) as upstream:
        proxy = start_proxy(upstream.url)
        other = asking(CHAT, f"{text} other")
        post(proxy, CHAT, other)
        until(lambda: proxy.stats()["total_responses"] == 1)
        body = asking(CHAT, text, **form)
        with Crowd(proxy, upstream) as crowd:
            answers = [crowd.lead(CHAT, body)]
            answers += [crowd.ask(CHAT, body) for _ in range(3)]
            waiting(proxy, 3)
            upstream.profile = replace(upstream.profile, info_delay=SLOW_SECONDS)
            began = time.monotonic()
            upstream.release()
            assert kinds(answers) == {"MISS": 1, "COLLAPSED": 3}
            assert post(proxy, CHAT, body).headers["X-Cache"] == "HIT"
            no_cache = {"headers": {"Cache-Control": "no-cache"}}
            new = [crowd.ask(CHAT, other, **no_cache), crowd.ask(CHAT, body, **no_cache)]
            assert kinds(new) == {"MISS": 2}
            assert post(proxy, CHAT, other).headers["X-Cache"] == "HIT"
            assert time.monotonic() - began < SLOW_SECONDS
            assert proxy.stats(settled=False)["total_responses"] == 1
            upstream.profile = replace(upstream.profile, info_delay=0.0)


# Aborts


def abort(proxy: Proxy, text: str, **kwargs: Any) -> int:
    """Asks for an abort as a client does; upstream's status."""
    return post(proxy, "/abort_request", {"rid": text}, **kwargs).status_code


def aborts(simulator: Simulator) -> list[str]:
    """The ids that upstream was to abort."""
    return [json.loads(r.body)["rid"] for r in simulator.received if r.path == "/abort_request"]


@forms
def test_abort_alone(form: Any, crowd: Crowd) -> None:
    """A client ends its own call, and upstream stops generating it."""
    aborted = crowd.upstream.aborted
    answer = crowd.lead(GENERATE, asking(GENERATE, crowd.text, rid=crowd.text, **form))
    assert abort(crowd.proxy, crowd.text) == 200
    assert finish(answer.result()) == f"abort of {crowd.text}"
    assert crowd.upstream.aborted == aborted + 1
    assert aborts(crowd.upstream) == [sampled(crowd.upstream)[0]["rid"]]
    assert aborts(crowd.upstream) != [crowd.text]
    assert is_idle(crowd.proxy.stats())


@pytest.mark.one_way
@forms
@pytest.mark.parametrize("who", ["leader", "follower"])
def test_abort_of_one(who: str, form: Any, crowd: Crowd) -> None:
    """One who aborts a call ends it, and not for others."""
    aborted = crowd.upstream.aborted
    calls = {
        name: asking(GENERATE, crowd.text, rid=f"{crowd.text} {name}", **form) for name in "ab"
    }
    answers = {"a": crowd.lead(GENERATE, calls["a"])}
    answers["b"] = crowd.ask(GENERATE, calls["b"])
    waiting(crowd.proxy, 1)
    name, other = ("a", "b") if who == "leader" else ("b", "a")
    assert abort(crowd.proxy, f"{crowd.text} {name}") == 200
    assert finish(answers[name].result()) == f"abort of {crowd.text} {name}"
    assert answers[name].result().headers["X-Cache"] == "MISS"
    assert "detail=abort" in answers[name].result().headers["Cache-Status"]
    assert crowd.upstream.waiting == 1
    assert not {f"{crowd.text} a", f"{crowd.text} b"} & set(aborts(crowd.upstream))
    crowd.upstream.release()
    assert finish(answers[other].result()) == f"length of {crowd.text} {other}"
    assert crowd.upstream.aborted == aborted
    assert is_idle(crowd.proxy.stats())


@pytest.mark.parametrize("who", ["leader", "follower"])
@paths
def test_abort_half_way(who: str, path: str, simulator: Simulator, proxy: Proxy, text: str) -> None:
    """A stream that is shared and has begun is left by an abort, which tells what there was as
    upstream does: with text, counts and logprobs."""
    names = ["leader", "follower"]
    more = {"stream": True, **({"return_logprob": True} if path == GENERATE else {})}
    calls = [asking(path, text, tokens=40, rid=f"{text} {n}", **more) for n in names]
    simulator.faults.append(Fault.PAUSE)
    with closing(Stream(proxy, path, calls[0])) as leader:
        until(lambda: simulator.waiting == 1)
        with closing(Stream(proxy, path, calls[1])) as follower:
            clients = dict(zip(names, (leader, follower), strict=True))
            chunks = {name: client.begin().chunks() for name, client in clients.items()}
            for some in chunks.values():
                next(some)
            assert abort(proxy, f"{text} {who}") == 200
            *_, last, done = chunks[who]
            assert done == DONE
            assert b'"abort"' in last
            assert simulator.waiting == 1
            simulator.release()
            (other,) = set(names) - {who}
            *_, whole, done = chunks[other]
            assert done == DONE
            assert b'"abort"' not in whole
    if path == GENERATE:
        told, meta = json.loads(last[6:]), json.loads(last[6:])["meta_info"]
        assert meta["finish_reason"]["type"] == "abort"
        assert 0 < meta["completion_tokens"] == len(meta["output_token_logprobs"])
        assert len(told["output_ids"]) == meta["completion_tokens"] < 40
        assert told["text"]
        assert json.loads(whole[6:])["text"].startswith(told["text"])


@forms
def test_abort_that_is_refused(form: Any, start_proxy: StartProxy, text: str) -> None:
    """Somebody without the key does not end others' calls."""
    with running(Profile(admin_api_key="admin")) as upstream:
        proxy = start_proxy(upstream.url)
        with Crowd(proxy, upstream) as crowd:
            calls = [asking(GENERATE, text, rid=name, **form) for name in "ab"]
            answers = [crowd.lead(GENERATE, calls[0]), crowd.ask(GENERATE, calls[1])]
            waiting(proxy, 1)
            assert [abort(proxy, name) for name in "ab"] == [401, 401]
            assert (proxy.stats()["followers"], upstream.waiting) == (1, 1)
            admin = {"headers": {"Authorization": "Bearer admin"}}
            assert abort(proxy, "b", **admin) == 200
            assert finish(answers[1].result()) == "abort of b"
            assert abort(proxy, "a") == 401
            assert upstream.waiting == 1
            assert abort(proxy, "a", **admin) == 200
            assert finish(answers[0].result()) == "abort of a"
            assert upstream.aborted == 1


@pytest.mark.one_way
@forms
def test_abort_all(form: Any, crowd: Crowd) -> None:
    """Who waits for what was aborted is told so, and nothing is generated again."""
    calls = [asking(GENERATE, crowd.text, rid=f"{crowd.text} {i}", **form) for i in range(4)]
    alone = asking(GENERATE, f"{crowd.text} alone", rid=f"{crowd.text} alone", **form)
    answers = [crowd.lead(GENERATE, calls[0])]
    answers += [crowd.ask(GENERATE, call) for call in calls[1:]]
    answers += [crowd.lead(GENERATE, alone)]
    waiting(crowd.proxy, 3)
    asked = post(crowd.proxy, "/abort_request", {"abort_all": True})
    assert asked.status_code == 200
    assert {finish(answer.result())[:6] for answer in answers} == {"abort "}
    assert len(sampled(crowd.upstream)) == 2
    assert is_idle(crowd.proxy.stats())


@forms
def test_pause_that_aborts(form: Any, crowd: Crowd) -> None:
    """Who waits for what a pause has aborted does not wait for the end of the pause."""
    calls = [asking(GENERATE, crowd.text, rid=f"{crowd.text} {i}", **form) for i in range(3)]
    answers = [crowd.lead(GENERATE, calls[0])]
    answers += [crowd.ask(GENERATE, call) for call in calls[1:]]
    waiting(crowd.proxy, 2)
    try:
        assert post(crowd.proxy, "/pause_generation", {"mode": "retract"}).status_code == 200
        assert (crowd.proxy.stats()["followers"], crowd.upstream.waiting) == (2, 1)
        assert post(crowd.proxy, "/pause_generation", {}).status_code == 200
        assert [finish(answer.result()) for answer in answers] == [
            f"abort of {crowd.text} {i}" for i in range(3)
        ]
        assert len(sampled(crowd.upstream)) == 1
        assert is_idle(crowd.proxy.stats())
    finally:
        post(crowd.proxy, "/continue_generation", {})


@pytest.mark.one_way
def test_abort_by_the_beginning_of_an_id(crowd: Crowd) -> None:
    """An abort of one id is one of all that begin with it, as in SGLang's scheduler."""
    rids = [f"{crowd.text} {tail}" for tail in ("1", "10", "1_0", "2")]
    answers = [
        crowd.lead(GENERATE, asking(GENERATE, f"{crowd.text} {rid}", rid=rid)) for rid in rids
    ]
    assert abort(crowd.proxy, f"{crowd.text} ") == 200
    assert crowd.upstream.waiting == 4
    assert abort(crowd.proxy, rids[0]) == 200
    for rid, answer in zip(rids[:3], answers, strict=False):
        assert finish(answer.result()) == f"abort of {rid}"
    assert crowd.upstream.waiting == 1
    crowd.upstream.release()
    assert finish(answers[3].result()) == f"length of {rids[3]}"


# Opting out


@pytest.mark.one_way
@forms
@pytest.mark.parametrize(
    ("value", "kind"), [("no-store", "BYPASS"), ("no-cache", "MISS"), ("max-age=5", "MISS")]
)
def test_own_way(value: str, kind: str, form: Any, crowd: Crowd) -> None:
    """A client that wants a generation of its own gets one."""
    body = asking(CHAT, crowd.text, **form)
    answers = [crowd.lead(CHAT, body)]
    answers.append(crowd.lead(CHAT, body, headers={"Cache-Control": value}))
    assert crowd.proxy.stats()["followers"] == 0
    crowd.upstream.release()
    assert [answer.result().headers["X-Cache"] for answer in answers] == ["MISS", kind]
    assert len({answer.result().content for answer in answers}) == 2
    assert len(sampled(crowd.upstream)) == 2


@pytest.mark.one_way
@forms
def test_no_collapse(form: Any, simulator: Simulator, start_proxy: StartProxy, text: str) -> None:
    """With --no-collapse each call has a sample of its own."""
    proxy = start_proxy(simulator.url, "--no-collapse")
    with Crowd(proxy, simulator) as crowd:
        body = asking(CHAT, text, **form)
        answers = [crowd.lead(CHAT, body) for _ in range(3)]
        assert proxy.stats()["followers"] == 0
        simulator.release()
        assert kinds(answers) == {"MISS": 3}
        assert len({answer.result().content for answer in answers}) == 3
        stats = proxy.stats()
        assert (stats["num_keys"], stats["total_responses"], stats["collapsed"]) == (1, 3, 0)
        assert post(proxy, CHAT, asking(CHAT, text, 3)).headers["X-Cache"] == "HIT"

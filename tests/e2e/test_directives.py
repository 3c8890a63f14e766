"""What a client asks of the cache (RFC 9111 request directives), and what it is told of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.store.journal.lines import seal
from tests.conftest import Proxy, StartProxy, until
from tests.e2e import calls
from tests.e2e.calls import (
    BODIES,
    CHAT,
    FORMS,
    GENERATE,
    forms,
    heard,
    paths,
    post,
    sampled,
    status_of,
)
from tests.e2e.conftest import StartFront
from tests.e2e.test_proxy import BYPASSES, bypassed
from tests.simulator import Fault, Profile, Simulator, running
from tests.tables import each

# Each test has prompts of its own.
pytestmark = pytest.mark.shared

INFO_SECONDS = 0.3
FIELDS = ["Cache-Control", "X-Cache-Control"]

CASES = [
    pytest.param(path, FORMS[form], field, id=f"{path}-{form}-{field}")
    for path in BODIES
    for form, field in zip(FORMS, FIELDS if path != GENERATE else FIELDS[::-1], strict=True)
]
cases = pytest.mark.parametrize(("path", "form", "field"), CASES)
"""Each API in both forms, and each form with both fields."""


Asking = Callable[..., dict[str, Any]]


@pytest.fixture
def asking(request: pytest.FixtureRequest) -> Asking:
    """Calls whose prompt no other test has."""
    return lambda path, n=1, **more: calls.asking(path, request.node.name, n, **more)


@pytest.fixture
def counted(proxy: Proxy) -> Callable[..., dict[str, Any]]:
    """What was counted since the beginning of the test."""
    before = proxy.stats()

    def since(*names: str) -> dict[str, Any]:
        now = proxy.stats()
        return {name: _minus(now[name], before[name]) for name in names}

    return since


def _minus(now: Any, before: Any) -> Any:
    if not isinstance(now, dict):
        return now - before
    differences = {name: count - before.get(name, 0) for name, count in now.items()}
    return {name: count for name, count in differences.items() if count}


def ask(
    proxy: Proxy, path: str, body: Any, value: str = "", field: str = "Cache-Control"
) -> requests.Response:
    """The answer to a call with these directives."""
    return calls.ask(proxy, path, body, {field: value} if value else {})


@cases
def test_no_store(
    path: str,
    form: Any,
    field: str,
    simulator: Simulator,
    proxy: Proxy,
    asking: Asking,
    counted: Any,
) -> None:
    """Nothing of the exchange is kept, and nothing that is kept answers it."""
    body = asking(path, **form)
    first = ask(proxy, path, body, "no-store", field)
    assert status_of(first) == ("BYPASS", "sglang-cached; fwd=bypass; detail=no-store")
    assert counted("total_responses") == {"total_responses": 0}
    stored = heard(path, ask(proxy, path, body))
    again = ask(proxy, path, body, "no-store", field)
    assert again.headers["X-Cache"] == "BYPASS"
    assert heard(path, again) != stored
    assert heard(path, ask(proxy, path, body)) == stored
    assert counted("total_responses", "bypasses") == {
        "total_responses": 1, "bypasses": {"no-store": 2}
    }  # fmt: skip
    assert len(sampled(simulator)) == 3


@cases
def test_no_cache(
    path: str,
    form: Any,
    field: str,
    simulator: Simulator,
    proxy: Proxy,
    asking: Asking,
    counted: Any,
) -> None:
    """What is stored is fetched anew, and the new answer takes its place; an age of 0, and one that
    is no number, is as if nothing were stored."""
    values = ("no-cache", "max-age=0", "max-age=nonsense", "max-age=-1", "max-age")
    old = heard(path, ask(proxy, path, asking(path, **form)))
    for value in values:
        fetched = ask(proxy, path, asking(path, **form), value, field)
        assert fetched.headers["X-Cache"] == "MISS", value
        new = heard(path, fetched)
        assert new != old
        for other in FORMS.values():
            hit = ask(proxy, path, asking(path, **other))
            assert (hit.headers["X-Cache"], heard(path, hit)) == ("HIT", new)
        old = new
    assert counted("total_responses") == {"total_responses": 1}
    assert len(sampled(simulator)) == 1 + len(values)


@pytest.mark.one_way
@forms
@paths
def test_no_cache_of_several(
    path: str, form: Any, simulator: Simulator, proxy: Proxy, asking: Asking
) -> None:
    """All samples of a call are fetched anew, in the places of as many former ones; the others
    stay."""
    old = heard(path, ask(proxy, path, asking(path, 3)))
    fetched = ask(proxy, path, asking(path, 2, **form), "no-cache")
    assert fetched.headers["X-Cache"] == "MISS"
    new = heard(path, fetched)
    assert not set(old.values()) & set(new.values())
    for n in (3, 1):
        again = ask(proxy, path, asking(path, n, **form))
        assert again.headers["X-Cache"] == "HIT"
        assert heard(path, again) == {k: v for k, v in {**old, **new}.items() if k < n}


@pytest.mark.one_way
@pytest.mark.parametrize("value", ["no-cache", "max-age=0"])
@pytest.mark.parametrize("fault", [Fault.ERROR_503, Fault.ABORT, Fault.CUT])
def test_what_cannot_be_had_anew(
    fault: Fault, value: str, simulator: Simulator, proxy: Proxy, asking: Asking
) -> None:
    """What is stored stays until there is something better."""
    old = heard(GENERATE, ask(proxy, GENERATE, asking(GENERATE)))
    simulator.faults.append(fault)
    assert ask(proxy, GENERATE, asking(GENERATE), value).headers["X-Cache"] == "MISS"
    assert heard(GENERATE, ask(proxy, GENERATE, asking(GENERATE), "only-if-cached")) == old


# Repeats at once


@pytest.fixture(scope="module")
def thoughtful() -> Iterator[Simulator]:
    """An upstream that takes its time to say who it is, so that answers are stored late."""
    with running(Profile(info_delay=INFO_SECONDS)) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def behind(thoughtful: Simulator, start_front: StartFront) -> Proxy:
    return start_front(thoughtful.url)


@forms
@each(("first", "then"), [("", ""), ("", "only-if-cached"), ("max-age=60", "max-age=60")])
def test_repeat(
    first: str, then: str, form: Any, thoughtful: Simulator, behind: Proxy, asking: Asking
) -> None:
    """A client that has its answer and repeats the call at once does not pay twice."""
    thoughtful.received.clear()
    body = asking(GENERATE, cache_salt=f"{first} {then}", **form)
    said, again = (
        post(behind, GENERATE, body, headers={"Cache-Control": value} if value else {})
        for value in (first, then)
    )
    assert (again.headers["X-Cache"], heard(GENERATE, again)) == ("HIT", heard(GENERATE, said))
    assert len(sampled(thoughtful)) == 1


@pytest.mark.one_way
@forms
def test_repeat_of_no_cache(form: Any, behind: Proxy, asking: Asking) -> None:
    """Who has fetched something anew gets the new answer from then on."""
    old = heard(GENERATE, ask(behind, GENERATE, asking(GENERATE, **form)))
    headers = {"Cache-Control": "no-cache"}
    new = heard(GENERATE, post(behind, GENERATE, asking(GENERATE, **form), headers=headers))
    # What is stored is given until it is replaced, which waits for upstream's word on its model.
    until(lambda: heard(GENERATE, post(behind, GENERATE, asking(GENERATE, **form))) == new)
    assert new != old


# Age


@pytest.fixture
def aged(simulator: Simulator, start_proxy: StartProxy, asking: Asking) -> Proxy:
    """A proxy that has answers, two to each call, of a hundred seconds ago."""
    proxy = start_proxy(simulator.url)
    for path in BODIES:
        ask(proxy, path, asking(path, 2))
    journal = Path(proxy.stats()["cache_file"])
    assert proxy.stop() == 0
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    aged = [{k: v for k, v in {**d, "at": d["at"] - 100}.items() if k != "sum"} for d in lines]
    journal.write_bytes(b"".join(seal(orjson.dumps(record)) for record in aged))
    return start_proxy(simulator.url)


@forms
def test_max_age(form: Any, aged: Proxy, asking: Asking) -> None:
    """An answer that is too old for a client is fetched anew, and then is there for all."""
    for path in BODIES:
        field = "x-cACHE-control" if path == CHAT else "Cache-Control"
        body = asking(path, **form)
        for value in ("max-age=1000", 'max-age="1000"', "MAX-AGE=99999999999999999999"):
            hit = ask(aged, path, body, value, field)
            assert hit.headers["X-Cache"] == "HIT"
            assert 100 <= int(hit.headers["Age"]) < 160
        old = heard(path, hit)
        fetched = ask(aged, path, body, "max-age=50", field)
        assert fetched.headers["X-Cache"] == "MISS"
        assert "Age" not in fetched.headers
        hit = ask(aged, path, body, "max-age=50", field)
        assert hit.headers["X-Cache"] == "HIT"
        assert int(hit.headers["Age"]) < 50
        assert heard(path, hit) == heard(path, fetched) != old
        assert heard(path, ask(aged, path, body)) == heard(path, fetched)
    assert aged.stats()["total_responses"] == 2 * len(BODIES), "the second ones are there still"


@pytest.mark.one_way
@forms
def test_age_of_several(form: Any, aged: Proxy, asking: Asking) -> None:
    """Age is that of the oldest sample; to who wants young ones, only those count."""
    for path in BODIES:
        old = heard(path, ask(aged, path, asking(path, 2, **form)))
        assert ask(aged, path, asking(path, 3, **form)).headers["X-Cache"] == "PARTIAL"
        whole = ask(aged, path, asking(path, 3, **form))
        assert int(whole.headers["Age"]) >= 100
        young = ask(aged, path, asking(path, 1, **form), "max-age=50, only-if-cached")
        assert young.headers["X-Cache"] == "HIT"
        assert int(young.headers["Age"]) < 50
        assert heard(path, young)[0] not in old.values()
        value = "max-age=50, only-if-cached"
        assert ask(aged, path, asking(path, 2, **form), value).status_code == 504
        # Nothing was replaced.
        assert ask(aged, path, asking(path, 3, **form)).content == whole.content


@pytest.mark.one_way
def test_age_of_a_repeat(simulator: Simulator, aged: Proxy, asking: Asking) -> None:
    """The age of a hit does not depend on how soon it was asked for."""
    simulator.become(info_delay=INFO_SECONDS)
    try:
        assert post(aged, GENERATE, asking(GENERATE, 3)).headers["X-Cache"] == "PARTIAL"
        whole = post(aged, GENERATE, asking(GENERATE, 3))
    finally:
        simulator.become(info_delay=0.0)
    assert whole.headers["X-Cache"] == "HIT"
    assert int(whole.headers["Age"]) >= 100


# only-if-cached


@cases
def test_only_if_cached(
    path: str,
    form: Any,
    field: str,
    simulator: Simulator,
    proxy: Proxy,
    asking: Asking,
    counted: Any,
) -> None:
    """A hit or a 504, and upstream hears nothing of it."""
    body = asking(path, **form)
    denied = ask(proxy, path, body, "only-if-cached", field)
    assert denied.status_code == 504
    assert status_of(denied) == ("DENIED", "sglang-cached; detail=only-if-cached")
    assert "only-if-cached" in denied.json()["error"]["message"]
    assert sampled(simulator) == []
    stored = heard(path, ask(proxy, path, body))
    hit = ask(proxy, path, body, "only-if-cached", field)
    assert status_of(hit) == ("HIT", "sglang-cached; hit")
    assert heard(path, hit) == stored
    short = ask(proxy, path, asking(path, 2, **form), "only-if-cached", field)
    assert (short.status_code, short.headers["X-Cache"]) == (504, "DENIED")
    assert counted("hits", "misses", "denied", "not_stored") == {
        "hits": 1, "misses": 1, "denied": 2, "not_stored": {}
    }  # fmt: skip
    assert len(sampled(simulator)) == 1


@pytest.mark.one_way
def test_only_if_cached_while_it_is_fetched(
    simulator: Simulator, proxy: Proxy, asking: Asking
) -> None:
    """Who wants what is there, or nothing, does not wait for upstream."""
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(post, proxy, GENERATE, asking(GENERATE))
        until(lambda: simulator.waiting == 1)
        assert ask(proxy, GENERATE, asking(GENERATE), "only-if-cached").status_code == 504
        simulator.release()
        held.result()
    assert ask(proxy, GENERATE, asking(GENERATE)).headers["X-Cache"] == "HIT"


def test_only_if_cached_and_not_understood(
    simulator: Simulator, proxy: Proxy, counted: Any
) -> None:
    """Who wants nothing from upstream gets nothing from there, whatever the call."""
    rule = {"Cache-Control": "only-if-cached"}
    found = {reason: bypassed(proxy, reason, **rule).status_code for reason in BYPASSES}
    assert found == dict.fromkeys(BYPASSES, 504)
    assert counted("denied", "bypasses") == {"denied": len(BYPASSES), "bypasses": {}}
    assert not [r for r in simulator.received if r.method == "POST"]


COMBINED = {
    "no-store, only-if-cached": (504, "DENIED"),
    "no-cache, only-if-cached": (504, "DENIED"),
    "max-age=0, only-if-cached": (504, "DENIED"),
    "max-age=60, only-if-cached": (200, "HIT"),
    "max-age=0, no-store": (200, "BYPASS"),
    "no-cache, no-store": (200, "BYPASS"),
    "max-age=60, max-age=0": (200, "MISS"),
    "no-cache, max-age=60": (200, "MISS"),
}


@pytest.mark.parametrize("value", COMBINED)
def test_combined(value: str, simulator: Simulator, proxy: Proxy, asking: Asking) -> None:
    """The strictest holds, however they are spread over the fields."""
    one, other = value.split(", ")
    for headers in (
        {"Cache-Control": value.upper()},
        {"Cache-Control": one, "X-Cache-Control": other},
        {"Cache-Control": other, "X-Cache-Control": f"x=y,,{one}"},
    ):
        ask(proxy, GENERATE, asking(GENERATE))
        answer = post(proxy, GENERATE, asking(GENERATE), headers=headers)
        assert (answer.status_code, answer.headers["X-Cache"]) == COMBINED[value], headers


UNKNOWN = [
    "max-stale=9, min-fresh=99999, no-transform",
    "stale-if-error=0, must-revalidate, private, public, s-maxage=0",
    "immutable",
    "x-no-store, no-store-at-all, no_cache",
    'note="no-store, no-cache, only-if-cached"',
    ",,;=,",
    "\xe9\xff",
]


@pytest.mark.parametrize("field", FIELDS)
def test_unknown(field: str, simulator: Simulator, proxy: Proxy, asking: Asking) -> None:
    """What is no directive of ours changes nothing."""
    for i, value in enumerate(UNKNOWN):
        body = {**asking(GENERATE), "text": f"{field} {i}"}
        headers: Any = {field: value.encode("latin-1")}
        kinds = [post(proxy, GENERATE, body, headers=headers).headers["X-Cache"] for _ in range(2)]
        assert kinds == ["MISS", "HIT"], value


# What the answer says


@pytest.mark.one_way
def test_key(simulator: Simulator, start_proxy: StartProxy, asking: Asking) -> None:
    """The key is how the journal's line begins; equal calls have it in common, in any form, and
    whatever became of them. A batch has none."""
    proxy = start_proxy(simulator.url)
    found: set[str] = set()
    for value in ("only-if-cached", "", "", "no-cache", "only-if-cached"):
        for form in FORMS.values():
            status = ask(proxy, GENERATE, asking(GENERATE, **form), value).headers["Cache-Status"]
            found |= set(re.findall(r'; key="([0-9a-f]{32})"', status)) or {status}
    (key,) = found
    batch = ask(proxy, GENERATE, {**asking(GENERATE), "text": ["a", "b"]})
    assert "key=" not in batch.headers["Cache-Status"]
    journal = Path(proxy.stats()["cache_file"])
    assert proxy.stop() == 0
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert lines[0]["key"].startswith(key)
    # A person with jq finds question and answers on one line.
    assert lines[0]["v"] == FORMAT_VERSION
    assert lines[0]["call"] == {**asking(GENERATE), "sampling_params": calls.PARAMS}
    assert lines[0]["answers"][0]["meta_info"]["completion_tokens"] == 8


@forms
@paths
def test_cache_status(
    path: str, form: Any, simulator: Simulator, proxy: Proxy, asking: Asking
) -> None:
    """RFC 9211 tells tools what became of each request."""
    stored = "" if form else "; stored"  # of a stream it is not known yet
    miss = ask(proxy, path, asking(path, **form))
    assert status_of(miss) == ("MISS", f"sglang-cached; fwd=miss{stored}")
    assert "Age" not in miss.headers
    hit = ask(proxy, path, asking(path, **form))
    assert status_of(hit) == ("HIT", "sglang-cached; hit")
    assert int(hit.headers["Age"]) < 60
    partial = ask(proxy, path, asking(path, 3, **form))
    detail = '; detail="1 of 3 stored"'
    assert status_of(partial) == ("PARTIAL", f"sglang-cached; fwd=partial{stored}{detail}")

"""APIs that generate nothing: each row of a list is looked up for itself."""

from __future__ import annotations

import json
import math
import re
import struct
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy
from tests.e2e.calls import post
from tests.simulator import Profile, Simulator, running
from tests.tables import each

Row = dict[str, Any]
Twist = Callable[[list[Row]], Any]
"""What a server makes of its rows."""

KNOWN, NEW = ["one two", "three"], ["four five six", "seven"]
LISTS: dict[str, tuple[dict[str, Any], str, list[Any], list[Any]]] = {
    # a body without its rows, the field that has them, some of them, and more
    "/v1/embeddings": ({"model": "m"}, "input", KNOWN, NEW),
    "/v1/classify": ({"model": "m"}, "input", KNOWN, NEW),
    "/v1/score": ({"query": "is ", "label_token_ids": [1, 2, 3]}, "items", KNOWN, NEW),
    "/encode": ({}, "text", KNOWN, NEW),
    "/classify": ({"dimensions": 3}, "input_ids", [[1000, 1001], [1002]], [[1003], [1004, 1000]]),
    "/v1/tokenize": ({"model": "m"}, "prompt", KNOWN, NEW),
    "/tokenize": ({}, "prompt", KNOWN, NEW),
    "/v1/detokenize": ({"model": "m"}, "tokens", [[1000, 1001], [1002]], [[1003], [1004, 1000]]),
    "/detokenize": ({}, "tokens", [[1000, 1001], [1002]], [[1003], [1004, 1000]]),
}
ROWS = each(
    ("path", "body", "field", "known", "new"), [(path, *row) for path, row in LISTS.items()]
)


def told(answer: requests.Response) -> Any:
    """An answer, but for the ids in it, which differ from one call to the next."""
    assert answer.status_code == 200, answer.text
    return json.loads(re.sub(rb'"id":"[0-9a-f]{32}",', b"", answer.content))


def asked(simulator: Simulator, path: str, field: str) -> list[Any]:
    """The rows of each call that has come to the server at this path."""
    bodies = [json.loads(request.body) for request in simulator.received if request.path == path]
    return [body[field] for body in bodies if field in body]


@pytest.mark.shared
@ROWS
def test_rows_of_lists(
    path: str,
    body: dict[str, Any],
    field: str,
    known: list[Any],
    new: list[Any],
    simulator: Simulator,
    proxy: Proxy,
) -> None:
    """Of a list, those rows go upstream that were not asked for before, in one call, each once;
    the answer is what the server says to the whole list. A lone row has the same key."""

    def direct(rows: Any) -> Any:
        return told(requests.post(simulator.url + path, json={**body, field: rows}, timeout=30))

    whole, twice = [new[1], *known, new[0], known[0], new[1]], [*known, known[0]]
    wanted = {str(rows): direct(rows) for rows in (twice, known, whole, known[1], new[0])}
    simulator.received.clear()
    for rows, outcome in (
        (twice, "MISS"), (twice, "HIT"), (known, "HIT"), (known[1], "HIT"), (whole, "PARTIAL"),
        (whole, "HIT"), (new[0], "HIT"),
    ):  # fmt: skip
        answer = post(proxy, path, {**body, field: rows})
        assert answer.headers["X-Cache"] == outcome, rows
        assert told(answer) == wanted[str(rows)], rows
        proxy.stats()
    assert asked(simulator, path, field) == [known, [new[1], new[0]]]


def test_rows_outlive_the_process(start_proxy: StartProxy) -> None:
    """What was answered is on disk: a new process answers from there, offline as well, and a client
    that wants it anew replaces it."""
    before = {}
    with running(Profile()) as simulator:
        first = start_proxy(simulator.url)
        for path, (body, field, known, _) in LISTS.items():
            before[path] = told(post(first, path, {**body, field: known}))
            first.stats()
            stored = first.stats()["total_responses"]
            no_cache = {"Cache-Control": "no-cache"}
            fresh = post(first, path, {**body, field: known}, headers=no_cache)
            assert (fresh.headers["X-Cache"], told(fresh)) == ("MISS", before[path])
            assert first.stats()["total_responses"] == stored
        first.stop()
    offline = start_proxy(simulator.url, "--mode", "offline")
    for path, (body, field, known, new) in LISTS.items():
        for rows, status in ((known, 200), (known[::-1], 200), ([*known, *new], 504)):
            again = post(offline, path, {**body, field: rows})
            assert again.status_code == status, (path, rows, again.text)
        message = again.json()["error"]["message"]
        assert "Of its 4 inputs, 2 are not: those at index 2, 3." in message
        assert told(post(offline, path, {**body, field: known})) == before[path]


@pytest.mark.shared
def test_rerank(simulator: Simulator, proxy: Proxy) -> None:
    """Each document is scored once for a query; the order, the best ones, and the documents are as
    the server would have them for each client."""
    whole = {"query": "who", "documents": ["one", "two three", "four", "one"]}
    others = (["four", "one"], ["five", "four"])
    calls = [whole, {**whole, "top_n": 2}, {**whole, "return_documents": False}]
    calls += [{**whole, "documents": documents} for documents in others]
    wanted = [
        told(requests.post(f"{simulator.url}/v1/rerank", json=call, timeout=30)) for call in calls
    ]
    for turn in range(2):
        simulator.received.clear()
        for call, want in reversed(list(zip(calls, wanted, strict=True))):
            assert told(post(proxy, "/v1/rerank", call)) == want
            proxy.stats()
        missing = [["five", "four"], ["one"], ["two three"]]
        assert asked(simulator, "/v1/rerank", "documents") == ([] if turn else missing)


@pytest.mark.shared
def test_best_alone(simulator: Simulator, proxy: Proxy) -> None:
    """Who wants the best alone has the server asked for all, and the next one as well nobody."""
    best = {"query": "what", "documents": ["one", "two", "three"], "top_n": 1}
    (want,) = told(requests.post(f"{simulator.url}/v1/rerank", json=best, timeout=30))
    simulator.received.clear()
    for turn in range(2):
        answer = post(proxy, "/v1/rerank", best)
        assert (answer.headers["X-Cache"], told(answer)) == ("HIT" if turn else "MISS", [want])
        proxy.stats()
    (sent,) = [json.loads(r.body) for r in simulator.received if r.path == "/v1/rerank"]
    assert sent == {name: value for name, value in best.items() if name != "top_n"}


def renumbered(*indices: Any) -> Twist:
    """A server that gives its last rows these indices."""

    def twist(rows: list[Row]) -> list[Row]:
        own = range(len(rows) - len(indices))
        return [{**row, "index": k} for row, k in zip(rows, [*own, *indices], strict=True)]

    return twist


def saying(vector: Any) -> Twist:
    """A server that says this in place of its last vector."""
    return lambda rows: [*rows[:-1], {**rows[-1], "embedding": vector}]


NAN = b64encode(struct.pack("<2f", math.nan, 1.0)).decode()
TWISTS: dict[str, Twist] = {
    "a row less": lambda rows: rows[:-1],
    "a row more": lambda rows: [*rows, {**rows[0], "index": len(rows)}],
    "an index twice": renumbered(0, 0),
    "from one on": renumbered(1, 2),
    "no index": renumbered(None, None),
    "an index in text": renumbered("0", "1"),
    "no list": lambda rows: {"0": rows},
    "NaN": saying([math.nan, 1.0]),
    "NaN in base64": saying(NAN),
    "null": saying([None, 1.0]),
    "no vector": saying(None),
    "a text": saying("x"),
}


@pytest.mark.shared
def test_odd_vectors(simulator: Simulator, proxy: Proxy) -> None:
    """Where the server gives other rows than it was asked for, or what is no vector, nothing of
    that is stored or put together with others: the client gets what the server says to its own
    call. Rows in another order are told by their index."""
    path, body = "/v1/embeddings", {"model": "odd"}

    def direct(call: dict[str, Any]) -> bytes:
        return requests.post(simulator.url + path, json=call, timeout=30).content

    post(proxy, path, {**body, "input": ["known"]})
    proxy.stats()
    try:
        for name, twist in [*TWISTS.items(), ("another order", lambda rows: rows[::-1])]:
            call = {**body, "input": ["known", f"{name} one", f"{name} two"]}
            right = json.loads(direct(call))
            simulator.twist = twist
            answer = post(proxy, path, call)
            proxy.stats()
            if name == "another order":
                assert (answer.headers["X-Cache"], answer.json()) == ("PARTIAL", right)
                continue
            assert (answer.headers["X-Cache"], answer.content) == ("BYPASS", direct(call)), name
            simulator.twist = list
            for outcome in ("PARTIAL", "HIT"):
                answer = post(proxy, path, call)
                assert (answer.headers["X-Cache"], answer.json()) == (outcome, right), name
                proxy.stats()
    finally:
        simulator.twist = list


def test_usage_that_nobody_can_tell(start_proxy: StartProxy) -> None:
    """Where the server does not count, the usage of an answer is what it says of the whole list,
    also of one that has something more than once: nothing is put together by guess."""
    path, body = "/v1/embeddings", {"model": "m"}
    lists = {
        "PARTIAL": ["one two", "four", "three"],
        "BYPASS": ["one two", "four", "three", "three"],
    }
    with running(Profile(has_tokenize=False)) as simulator:
        proxy = start_proxy(simulator.url)
        known = post(proxy, path, {**body, "input": "four"})
        assert known.headers["X-Cache"] == "MISS"
        for outcome, rows in lists.items():
            call = {**body, "input": rows}
            want = requests.post(simulator.url + path, json=call, timeout=30)
            proxy.stats()
            for _ in range(2):
                answer = post(proxy, path, call)
                assert (answer.headers["X-Cache"], answer.json()) == (outcome, want.json())


@pytest.mark.shared
def test_portions(simulator: Simulator, proxy: Proxy) -> None:
    """A list that is asked for in portions has the answer that the server gives to all of it, with
    its usage, whatever of it was known and however often something stands in it."""
    texts = [f"portion {i}" for i in range(1030)]
    listed = [texts[7], *texts, texts[0], texts[7]]
    for path, form in (
        ("/v1/embeddings", "base64"),
        ("/v1/embeddings", "float"),
        ("/v1/score", ""),
    ):
        body, field, *_ = LISTS[path]
        call = {**body, field: listed, **({"encoding_format": form} if form else {})}
        want = told(requests.post(simulator.url + path, json=call, timeout=60))
        if form != "float":  # both forms have one key
            post(proxy, path, {**body, field: texts[5:9]})
            proxy.stats()
            simulator.received.clear()
            answer = post(proxy, path, call, timeout=60)
            assert (answer.headers["X-Cache"], told(answer)) == ("PARTIAL", want), path
            assert sorted(map(len, asked(simulator, path, field))) == [6, 252, 256, 256, 256]
            proxy.stats()
        answer = post(proxy, path, call, timeout=60)
        assert (answer.headers["X-Cache"], told(answer)) == ("HIT", want), path


@pytest.mark.shared
def test_questions(simulator: Simulator, proxy: Proxy) -> None:
    """Each question is answered once for its input, and has its own usage in the answer; those of
    an API whose models may answer them together are answered together."""
    first, second, third = ({"id": name, "type": "yes_no", "question": name} for name in "xyz")
    whole = {"input": "one two", "questions": [first, second]}
    calls = [whole, {**whole, "questions": [second]}, {**whole, "questions": [third, first]}]
    path = "/v1/decisions"
    wanted = [told(requests.post(simulator.url + path, json=call, timeout=30)) for call in calls]
    simulator.received.clear()
    for outcomes in (("MISS", "HIT", "PARTIAL"), ("HIT", "HIT", "HIT")):
        for call, want, outcome in zip(calls, wanted, outcomes, strict=True):
            answer = post(proxy, path, call)
            assert (answer.headers["X-Cache"], told(answer)) == (outcome, want)
            proxy.stats()
    assert asked(simulator, path, "questions") == [[first, second], [third]]
    body = {"model": "m", "state": "a", "questions": {"q": {"type": "noul"}}}
    for more, outcome in (({}, "MISS"), ({}, "HIT"), ({"temperature": 2}, "MISS")):
        answer = post(proxy, "/v1/systemone", {**body, **more})
        assert answer.headers["X-Cache"] == outcome
        proxy.stats()


@pytest.mark.shared
def test_runs_and_directives(simulator: Simulator, proxy: Proxy) -> None:
    """Nothing is drawn, so that each call of a run has what any other has; what a client wants of
    the cache holds for each input."""
    for path, (body, field, known, new) in LISTS.items():
        listed = {**body, field: [*known, *new], "of": "runs"}
        first = told(post(proxy, path, listed))
        proxy.stats()
        simulator.received.clear()
        for run in ("/run/one", "/run/one", "/run/two", ""):
            again = post(proxy, f"{run}{path}", listed)
            assert (again.headers["X-Cache"], told(again)) == ("HIT", first), path
        other = {**listed, "of": "directives"}
        for directive, status in (("only-if-cached", 504), ("no-store", 200), ("max-age=0", 200)):
            headers = {"Cache-Control": directive}
            assert post(proxy, path, other, headers=headers).status_code == status
            proxy.stats()
        assert len(asked(simulator, path, field)) == 2, path


def test_credentials(start_proxy: StartProxy) -> None:
    """What is stored is given to those alone whom the server has accepted on the same route."""
    with running(Profile(api_key="right")) as simulator:
        proxy = start_proxy(simulator.url)
        for path, (body, field, known, _) in LISTS.items():
            listed = {**body, field: known}
            for key, status in (("right", 200), ("wrong", 401), ("right", 200), ("", 401)):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                answer = post(proxy, path, listed, headers=headers)
                assert answer.status_code == status, (path, key)
                proxy.stats()
            last = post(proxy, path, listed, headers={"Authorization": "Bearer right"})
            assert last.headers["X-Cache"] == "HIT", path

"""Runs: the k-th equal call gets the k-th sample, whatever the API, the form and the way in."""

from __future__ import annotations

import contextlib
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import requests

from sglang_cached_addon.core.places import read
from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import Stream
from tests.simulator import Fault, Simulator, is_probe

GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
APIS = (GENERATE, COMPLETIONS, CHAT)


def body(path: str, text: Any, n: int = 1, **more: Any) -> dict[str, Any]:
    """A call that draws."""
    if path == GENERATE:
        params = {"temperature": 0.9, "max_new_tokens": 16, "n": n}
        return {"text": text, "sampling_params": {**params, **more.pop("params", {})}, **more}
    content: dict[str, Any] = {"prompt": text}
    if path == CHAT:
        content = {"messages": [{"role": "user", "content": text}]}
    return {"model": "m", "max_tokens": 16, "temperature": 0.9, "n": n, **content, **more}


def draw(proxy: Proxy, name: str, path: str, asked: Any, **headers: str) -> requests.Response:
    answer = requests.post(f"{proxy.url}/run/{name}{path}", json=asked, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def together(proxy: Proxy, name: str, path: str, asked: Any) -> list[requests.Response]:
    """Eight calls at the same moment."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda _: draw(proxy, name, path, asked), range(8)))


def texts(answer: requests.Response) -> list[str]:
    """What was generated, in the order of the choices."""
    if answer.headers["Content-Type"].startswith("text/event-stream"):
        found: dict[int, str] = {}
        for event in answer.text.split("\n\n")[:-2]:
            value = json.loads(event[6:])
            if "choices" not in value:  # SGLang's own events have all of the text so far
                found[value.get("index", 0)] = value["text"]
            for choice in value.get("choices", ()):
                said = choice.get("delta", {}).get("content") or choice.get("text") or ""
                found[choice["index"]] = found.get(choice["index"], "") + said
        return [found[index] for index in sorted(found)]
    value = answer.json()
    if isinstance(value, list):
        return [each["text"] for each in value]
    if "choices" not in value:
        return [value["text"]]
    return [c["message"]["content"] if "message" in c else c["text"] for c in value["choices"]]


def calls(simulator: Simulator) -> int:
    """The calls that have come to upstream."""
    return sum(r.path in APIS and not is_probe(r) for r in simulator.received)


def test_each_draws(simulator: Simulator, proxy: Proxy) -> None:
    """Each call of a run has the next sample, and a second run has the same ones for nothing: for
    every API, for JSON and streams, one prompt and lists, and more than one sample a call."""
    cases = [
        (path, text, n, stream)
        for path in APIS
        for text in (("a", ["a", "b"]) if path != CHAT else ("a",))
        for n in (1, 2)
        for stream in (False, True)
    ]
    for number, (path, text, n, stream) in enumerate(cases):
        case = f"{path} {text} {n} {stream}"
        prompts = [f"{number} {t}" for t in text] if isinstance(text, list) else f"{number} {text}"
        asked = body(path, prompts, n, **({"stream": True} if stream else {}))
        first = [draw(proxy, f"a{number}", path, asked) for _ in range(3)]
        seen = [t for answer in first for t in texts(answer)]
        size = 3 * n * (len(text) if isinstance(text, list) else 1)
        assert len(set(seen)) == len(seen) == size, case
        proxy.stats()
        before = calls(simulator)
        again = [draw(proxy, f"b{number}", path, asked) for _ in range(3)]
        assert [texts(answer) for answer in again] == [texts(answer) for answer in first], case
        assert {answer.headers["X-Cache"] for answer in again} == {"HIT"}, case
        assert calls(simulator) == before, case
        places = [answer.headers["X-Cache-Sample"] for answer in again]
        one = [str(k) if n == 1 else f"{k * n}-{k * n + n - 1}" for k in range(3)]
        assert places == ([f"{k},{k}" for k in one] if isinstance(text, list) else one), case


def test_how_a_run_is_named(simulator: Simulator, start_proxy: StartProxy) -> None:
    """By the path, by a header, which wins, or by `--run`; upstream sees nothing of it."""
    proxy = start_proxy(simulator.url, "--run", "usual")
    asked = body(GENERATE, "x")

    def by(path: str = GENERATE, **headers: str) -> str:
        answer = requests.post(proxy.url + path, json=asked, headers=headers, timeout=60)
        return answer.headers["X-Cache-Sample"]

    assert by() == "0"
    assert by("/run/usual/generate") == "1"
    assert by("/run/other/generate", **{"X-Cache-Run": "usual"}) == "2"
    assert by("/run/other/generate") == "0"
    assert by(**{"X-Cache-Run": "Third_1.-"}) == "0"
    found = requests.get(f"{proxy.url}/cache/runs", timeout=30).json()["runs"]
    assert [(run["name"], run["calls"], run["places"]) for run in found] == [
        ("Third_1.-", 1, 1),
        ("other", 1, 1),
        ("usual", 3, 3),
    ]
    assert [(run["reused"], run["generated"]) for run in found] == [(1, 0), (1, 0), (0, 3)]
    for request in simulator.received:
        assert not request.path.startswith("/run/")
        assert "x-cache-run" not in {name.lower() for name in request.headers}
    models, direct = (
        requests.get(f"{url}/v1/models", timeout=30).json()["data"]
        for url in (f"{proxy.url}/run/usual", simulator.url)
    )
    assert models == [{**one, "created": models[0]["created"]} for one in direct]  # just now
    assert requests.get(f"{proxy.url}/run/a/cache/stats", timeout=30).json()["hits"] == 2
    assert requests.get(f"{proxy.url}/run/a/nothing", timeout=30).status_code == 404


def test_bad_names(proxy: Proxy) -> None:
    """A bad name is a 400 that says what a name is."""
    for path, headers in (
        ("/run/a@b/generate", {}),
        ("/run//generate", {}),
        (f"/run/{'x' * 101}/generate", {}),
        ("/run/%20/v1/models", {}),
        (GENERATE, {"X-Cache-Run": "a b"}),
        (GENERATE, {"X-Cache-Run": ""}),
        ("/run/good/generate", {"X-Cache-Run": "a/b"}),
    ):
        answer = requests.post(
            proxy.url + path, json=body(GENERATE, "x"), headers=headers, timeout=10
        )
        assert answer.status_code == 400, (path, headers)
        assert "1 to 100 letters" in answer.json()["error"]["message"], (path, headers)


def test_greedy(simulator: Simulator, proxy: Proxy) -> None:
    """Calls for the likeliest answer take the first sample in every run."""
    for path in APIS:
        greedy = {"params": {"temperature": 0}} if path == GENERATE else {"temperature": 0}
        for more in ({}, {"stream": True}):
            asked = body(path, f"greedy {path} {more}", **greedy, **more)
            found = [draw(proxy, "g", path, asked) for _ in range(3)]
            assert [answer.headers["X-Cache"] for answer in found] == ["MISS", "HIT", "HIT"]
            assert [answer.headers.get("X-Cache-Sample") for answer in found[1:]] == ["0", "0"]


def test_group(simulator: Simulator, proxy: Proxy) -> None:
    """Calls that wait at the same moment are one call to upstream, and each has its own sample, id
    and usage; a second run at once has the same samples, and generates nothing."""
    for path in APIS:
        asked, before = body(path, f"group {path}"), calls(simulator)
        simulator.faults.append(Fault.HOLD)
        with ThreadPoolExecutor(9) as pool:
            alone = pool.submit(draw, proxy, "a", path, asked)
            until(lambda: calls(simulator) == before + 1)  # noqa: B023
            waiting = [pool.submit(draw, proxy, "a", path, asked) for _ in range(8)]
            until(lambda: proxy.stats()["followers"] == 8)
            simulator.release()
            first, *found = [answer.result() for answer in (alone, *waiting)]
        assert calls(simulator) == before + 2, path
        assert len({text for answer in (first, *found) for text in texts(answer)}) == 9, path
        assert sorted(int(a.headers["X-Cache-Sample"]) for a in found) == list(range(1, 9)), path
        shapes = {tuple(sorted(answer.json())) for answer in found}
        assert shapes == {tuple(sorted(first.json()))}, path
        if path == GENERATE:
            assert len({answer.json()["meta_info"]["id"] for answer in found}) == 8
        else:
            usages = [answer.json()["usage"] for answer in found]
            told = first.json()["usage"]["prompt_tokens"]
            assert {usage["prompt_tokens"] for usage in usages} == {told}, path
        proxy.stats()
        assert draw(proxy, "b", path, asked).content == first.content
        again = together(proxy, "b", path, asked)
        assert calls(simulator) == before + 2, path
        assert {t for a in again for t in texts(a)} == {t for a in found for t in texts(a)}


def test_abort_of_one(simulator: Simulator, proxy: Proxy) -> None:
    """Who aborts one of a group frees the place of that call alone."""
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(4) as pool:
        first, *others = [
            pool.submit(draw, proxy, "a", GENERATE, body(GENERATE, "q", rid=f"r{k}"))
            for k in range(4)
        ]
        until(lambda: proxy.stats()["followers"] == 3)
        aborting = requests.post(f"{proxy.url}/abort_request", json={"rid": "r2"}, timeout=30)
        assert aborting.status_code == 200
        aborted = others.pop(1).result().json()["meta_info"]
        assert (aborted["id"], aborted["finish_reason"]["type"]) == ("r2", "abort")
        simulator.release()
        found = [answer.result() for answer in (first, *others)]
    assert [answer.json()["meta_info"]["id"] for answer in found] == ["r0", "r1", "r3"]
    assert sorted(answer.headers["X-Cache-Sample"] for answer in found) == ["0", "1", "2"]
    told = requests.get(f"{proxy.url}/cache/runs/a", timeout=30).json()
    assert told["places"] == 3


def wait_for(proxy: Proxy, log: Path, place: int) -> None:
    """Returns when this place and its sample are on disk."""

    def is_written() -> bool:
        lines = [json.loads(line) for line in log.read_bytes().splitlines()]
        spans = [span for line in lines for span in line.get("taken", {}).values()]
        return any(place in span for each in spans for span in read(each))

    until(lambda: not proxy.stats()["pending_writes"])
    until(is_written)


def test_restart(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Places outlive the process as samples do, also where it is killed."""
    asked, log = body(GENERATE, "q"), tmp_path / "cache" / "runs.jsonl"
    for count, number in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)):
        proxy = start_proxy(simulator.url)
        answer = draw(proxy, "a", GENERATE, asked)
        assert answer.headers["X-Cache-Sample"] == str(count)
        wait_for(proxy, log, count)
        proxy.stop(number)
    proxy = start_proxy(simulator.url)
    found = requests.get(f"{proxy.url}/cache/runs/a", timeout=30).json()
    assert found["places"] == 3


def test_admin(simulator: Simulator, proxy: Proxy) -> None:
    """A run can be shown, rewound, begun behind what is stored, and forgotten."""
    asked = body(GENERATE, "q")
    url = f"{proxy.url}/cache/runs"

    def place(name: str = "a") -> str:
        found = draw(proxy, name, GENERATE, asked).headers["X-Cache-Sample"]
        proxy.stats()
        return found

    assert [place() for _ in range(3)] == ["0", "1", "2"]
    assert requests.post(f"{url}/a/rewind", timeout=30).json()["places"] == 0
    assert [place() for _ in range(2)] == ["0", "1"]
    assert requests.post(f"{url}/b", json={"fresh": True}, timeout=30).status_code == 200
    assert [place("b") for _ in range(2)] == ["3", "4"]
    assert place() == "2"
    assert requests.delete(f"{url}/a", timeout=30).json()["calls"] == 6
    assert requests.get(f"{url}/a", timeout=30).status_code == 404
    assert requests.post(f"{url}/a/rewind", timeout=30).status_code == 404
    assert place() == "0"
    assert requests.post(f"{url}/a", json={"x": 1}, timeout=30).status_code == 400
    assert requests.put(f"{url}/a", timeout=30).status_code == 405
    elsewhere = {"X-Forwarded-For": "10.0.0.1"}
    for method, path in (("GET", ""), ("GET", "/a"), ("POST", "/a/rewind"), ("DELETE", "/a")):
        refused = requests.request(method, url + path, headers=elsewhere, timeout=30)
        assert refused.status_code == 403, (method, path)


def test_directives(simulator: Simulator, proxy: Proxy) -> None:
    """In a run, `no-cache` replaces nothing: it takes the next place behind the pool's end."""
    asked = body(GENERATE, "q")
    assert draw(proxy, "a", GENERATE, asked).headers["X-Cache-Sample"] == "0"
    proxy.stats()
    new = draw(proxy, "b", GENERATE, asked, **{"Cache-Control": "no-cache"})
    assert new.headers["X-Cache-Sample"] == "1"
    proxy.stats()
    assert draw(proxy, "b", GENERATE, asked).headers["X-Cache-Sample"] == "0"
    assert draw(proxy, "b", GENERATE, asked).headers["X-Cache-Sample"] == "2"
    proxy.stats()
    assert texts(draw(proxy, "c", GENERATE, asked)) != texts(new)
    assert texts(draw(proxy, "c", GENERATE, asked)) == texts(new)
    run = requests.get(f"{proxy.url}/cache/runs/b", timeout=30).json()
    assert (run["places"], run["reused"], run["generated"]) == (3, 1, 2)


def test_offline(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The k-th call gets the k-th stored sample, and a 504 that says so where there are fewer."""
    asked = body(GENERATE, "q", n=2)
    proxy = start_proxy(simulator.url)
    draw(proxy, "a", GENERATE, asked)
    proxy.stats()
    proxy.stop()
    proxy = start_proxy(simulator.url, "--mode", "offline")
    one = body(GENERATE, "q")
    assert [draw(proxy, "z", GENERATE, one).headers["X-Cache-Sample"] for _ in range(2)] == [
        "0",
        "1",
    ]
    answer = requests.post(f"{proxy.url}/run/z/generate", json=one, timeout=30)
    assert answer.status_code == 504
    assert "run z" in answer.json()["error"]["message"]
    assert draw(proxy, "y", GENERATE, one).headers["X-Cache-Sample"] == "0"


def leave(proxy: Proxy, simulator: Simulator, path: str, asked: Any) -> None:
    """A client makes a call that upstream holds back, and leaves before it is answered."""
    others = simulator.waiting
    with closing(Stream(proxy, path, asked)):
        until(lambda: simulator.waiting == others + 1)
    until(lambda: simulator.waiting == others)


def test_given_back(simulator: Simulator, proxy: Proxy) -> None:
    """A place is free again where its answer was not delivered whole: upstream fails, aborts or
    hangs up, or the client leaves."""
    for number, path in enumerate(APIS):
        for form in ({}, {"stream": True}):
            name, asked = f"{number}{len(form)}", body(path, f"q {number} {form}", **form)
            told = f"{proxy.url}/cache/runs/{name}"
            draw(proxy, name, path, asked)
            for fault in (Fault.ERROR_503, Fault.ABORT, Fault.CUT, Fault.HOLD):
                simulator.faults.append(fault)
                if fault is Fault.HOLD:
                    leave(proxy, simulator, f"/run/{name}{path}", asked)
                else:
                    with contextlib.suppress(requests.exceptions.RequestException):
                        requests.post(f"{proxy.url}/run/{name}{path}", json=asked, timeout=30)
                until(lambda: proxy.stats()["fetches_in_flight"] == 0)
                until(lambda told=told: requests.get(told, timeout=30).json()["places"] == 1)
            assert draw(proxy, name, path, asked).headers.get("X-Cache-Sample", "1") == "1"
            proxy.stats()
            again = [draw(proxy, f"{name}b", path, asked) for _ in range(2)]
            assert [answer.headers["X-Cache"] for answer in again] == ["HIT", "HIT"]

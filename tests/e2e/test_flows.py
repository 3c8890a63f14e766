"""What other addons of mitmproxy see of a call, and what they can do to it: in `start --web`, in
`start`, mitmdump and mitmweb with a script."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from tests import onlooker
from tests.conftest import Proxy, cache_status, end, until
from tests.e2e.calls import DONE, Stream, asking, post, sampled, stream, texts
from tests.e2e.conftest import WAYS
from tests.simulator import Fault, Profile, Simulator, running
from tests.tables import each

GENERATE, LISTS = "/generate", "/v1/detokenize"
DEED = {"X-Deed": "kill-answer"}
SCRIPT = Path(onlooker.__file__)
STARTS = [way for way in ("lane", "web", "mitmdump", "mitmweb") if way in WAYS]
"""The lane's way with a script, which shuts the lane."""


class Front:
    """A proxy on which the script looks on, and what that has written down."""

    def __init__(self, proxy: Proxy, file: Path) -> None:
        self.proxy = proxy
        self._file = file

    def flows(self, word: str) -> list[dict[str, Any]]:
        """The flows whose request has this word in its body, as they are now."""
        text = self._file.read_text() if self._file.exists() else ""
        lines = text.splitlines()[: text.count("\n")]  # the last one may not be whole yet
        latest = {flow["id"]: flow for flow in map(json.loads, lines)}
        return [flow for flow in latest.values() if word in (flow["body"] or "")]

    def seen(self, word: str, fetches: int = 1) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The last flow of a client with this word, and those of the fetches, once all are over."""

        def ended() -> bool:
            flows = self.flows(word)
            asks = [flow for flow in flows if flow["asks"]]
            is_over = all(flow["error"] or flow["times"][3] for flow in flows)
            return len(asks) == fetches and len(flows) > fetches and is_over

        until(ended)
        flows = self.flows(word)
        client = [flow for flow in flows if not flow["asks"]][-1]
        return client, [flow for flow in flows if flow["asks"]]

    def ask(self, word: str, **more: Any) -> requests.Response:
        """A call with this word in its prompt."""
        return post(self.proxy, GENERATE, asking(GENERATE, f"{word} one two", **more))

    def kinds(self, word: str, calls: int = 2) -> list[str]:
        """What becomes of equal calls, one after the other was stored, or not."""
        found = []
        for _ in range(calls):
            found.append(self.ask(word).headers["X-Cache"])
            self.proxy.stats()
        return found

    def let_go(self, verb: str) -> None:
        """Lets go of what the script holds."""
        url = f"{self.proxy.url}/health"
        requests.get(url, headers={"X-Held": verb}, timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    with running(Profile(tokens_per_second=200.0)) as simulator:
        yield simulator


@pytest.fixture(scope="module", params=STARTS)
def started(
    request: pytest.FixtureRequest, upstream: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    file = folder / "flows"
    arguments = ("-s", str(SCRIPT), "--set", f"onlooker_file={file}")
    proxy = WAYS[request.param](upstream.url, folder, *arguments)
    try:
        proxy.wait_until_ready()
        yield Front(proxy, file)
        assert proxy.stop() == 0
        log = proxy.log.replace("ValueError: the script fails", "")
        assert log.count("Traceback") == proxy.log.count("ValueError: the script fails")
    finally:
        end(proxy)


@pytest.fixture
def front(started: Front, upstream: Simulator) -> Front:
    upstream.received.clear()
    upstream.faults.clear()
    return started


def test_miss(front: Front, upstream: Simulator) -> None:
    """A fetch is a flow of its own, from this addon to upstream, with what went out and what came;
    the client's flow says what became of the call, and names the fetch."""
    answer = front.ask("plain")
    client, (fetch,) = front.seen("plain")
    (sent,) = (r for r in upstream.received if b"plain" in r.body)
    assert fetch["client"] == "sglang-cached"
    assert fetch["server"] == ["127.0.0.1", int(upstream.url.rpartition(":")[2])]
    assert fetch["url"] == f"{upstream.url}{GENERATE}"
    assert fetch["headers"] == sent.headers
    assert fetch["body"].encode() == sent.body
    assert (fetch["status"], fetch["answer"]) == (200, answer.text)
    assert all(a <= b for a, b in pairwise(fetch["times"]))
    assert fetch["connected"] <= fetch["times"][2]
    name = sent.headers["x-request-id"]
    key = cache_status_key(answer)
    assert fetch["comment"] == f"fetch of 1 sample, id {name}, key {key}"
    assert client["comment"] == f"miss 0/1, fetch {name}, key {key}"
    assert (client["marked"], fetch["marked"]) == (":large_blue_circle:", ":outbox_tray:")
    assert client["answer"] == answer.text


def cache_status_key(answer: requests.Response) -> str:
    return answer.headers["Cache-Status"].partition('key="')[2].partition('"')[0]


def test_lists(front: Front, upstream: Simulator) -> None:
    """What is short of a list is one fetch, and the portions of a long one are one each; one that
    is killed is a 502, and nothing of it is stored."""

    def ask(tokens: Any) -> requests.Response:
        return post(front.proxy, LISTS, {"tokens": tokens, "model": "of-a-list"})

    first = [[1000, k] for k in range(3)]
    assert ask(first[:1]).headers["X-Cache"] == "MISS"
    front.proxy.stats()
    answer = ask(first)
    client, (_, fetch) = front.seen("of-a-list", 2)
    assert json.loads(fetch["body"])["tokens"] == first[1:]
    assert fetch["comment"].startswith("fetch of 2 samples (of 3), id ")
    assert client["comment"].startswith("partial 1/3, fetch ")
    assert json.loads(client["answer"]) == answer.json()

    long = [[1000, k] for k in range(10, 500)]
    sent = post(front.proxy, LISTS, {"tokens": long, "model": "of-portions"})
    assert len(sent.json()["text"]) == len(long)
    client, fetches = front.seen("of-portions", 2)
    assert [len(json.loads(fetch["body"])["tokens"]) for fetch in fetches] == [256, 234]
    captions = [fetch["comment"].partition(", id ")[0] for fetch in fetches]
    assert captions == [
        "fetch of 256 samples (a portion of a list)",
        "fetch of 234 samples (a portion of a list)",
    ]
    assert client["comment"].count("fetch ") == 2

    for _ in range(2):
        tokens = [[1001, k] for k in range(2)]
        killed = post(front.proxy, LISTS, {"tokens": tokens, "model": "m"}, headers=DEED)
        assert killed.status_code == 502, killed.text


def test_partial_and_hit(front: Front, upstream: Simulator) -> None:
    """Of a partial answer, the fetch has the trimmed request and upstream's own part; a hit has no
    fetch. The name of a run is in the comments."""
    front.ask("topped-up")
    front.proxy.stats()
    answer = front.ask("topped-up", n=3)
    client, (_, fetch) = front.seen("topped-up", 2)
    assert json.loads(fetch["body"])["sampling_params"]["n"] == 2
    assert len(json.loads(fetch["answer"])) == 2
    assert len(json.loads(client["answer"])) == 3
    assert fetch["comment"].startswith("fetch of 2 samples (of 3), id ")
    assert client["comment"].startswith("partial 1/3, fetch ")
    assert client["marked"] == ":yellow_circle:"
    front.proxy.stats()
    assert front.ask("topped-up", n=2).headers["X-Cache"] == "HIT"
    client, _ = front.seen("topped-up", 2)
    assert client["comment"] == f"hit 2/2, key {cache_status_key(answer)}"
    assert (client["marked"], client["replay"]) == (":green_circle:", "response")
    body = asking(GENERATE, "topped-up one two")
    post(front.proxy, f"/run/eval-1{GENERATE}", body)
    client, _ = front.seen("topped-up", 2)
    assert client["comment"].endswith(", run eval-1")


@each("form", ["fetched", "stored"])
def test_stream(form: str, front: Front, upstream: Simulator) -> None:
    """The events of a stream are the body of the client's flow, and of the fetch's; nobody waits
    for them longer than without."""
    body = {**asking(GENERATE, "as-a-stream one two"), "stream": True}
    if form == "fetched":
        upstream.faults.append(Fault.PAUSE)
    with closing(Stream(front.proxy, GENERATE, body)) as client:
        chunks = client.begin().chunks()
        first = next(chunks)
        if form == "fetched":
            until(lambda: upstream.waiting)
        upstream.release()
        events = [first, *chunks]
    assert events[-1] == DONE
    shown, (fetch,) = front.seen("as-a-stream")
    assert shown["answer"].encode() == b"".join(events)
    assert fetch["answer"].encode().endswith(DONE)
    kind = {"fetched": "miss 0/1", "stored": "hit 1/1"}[form]
    assert shown["comment"].startswith(f"{kind}, ")
    front.proxy.stats()


def test_follower(front: Front, upstream: Simulator) -> None:
    """Who waits for the fetch of another call is told which one, while it waits and in the end, and
    so is who reads its stream along."""
    for word, more in (("along", {}), ("abreast", {"stream": True})):
        upstream.faults.append(Fault.HOLD)
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(front.ask, word, **more) for _ in range(2)]
            until(lambda word=word: any("waited" in flow["comment"] for flow in front.flows(word)))
            until(lambda: upstream.waiting)
            upstream.release()
            kinds = {future.result().headers["X-Cache"] for future in asked}
        assert kinds == {"MISS", "COLLAPSED"}
        _, (fetch,) = front.seen(word)
        name = fetch["headers"]["x-request-id"]
        clients = [flow for flow in front.flows(word) if not flow["asks"]]
        found = {flow["marked"]: flow["comment"] for flow in clients}
        assert f", fetch {name}, " in found[":large_blue_circle:"]
        assert f", waited for fetch {name}, " in found[":link:"]
        assert len([body for body in sampled(upstream) if word in body["text"]]) == 1


def test_what_is_not_for_the_cache(front: Front) -> None:
    """What passes is shown with its body, and why it passes."""
    answer = post(front.proxy, "/v1/audio/speech", {"model": "m", "input": "passes one two"})
    client, _ = front.seen("passes", 0)
    assert (client["comment"], client["marked"]) == ("bypass (audio)", ":white_circle:")
    assert client["answer"] == answer.text
    denied = post(
        front.proxy,
        GENERATE,
        asking(GENERATE, "denied"),
        headers={"Cache-Control": "only-if-cached"},
    )
    client, _ = front.seen("denied", 0)
    assert (denied.status_code, client["marked"]) == (504, ":no_entry:")
    assert client["comment"].startswith("denied 0/1 (only-if-cached), key ")


def test_a_header_more(front: Front, upstream: Simulator) -> None:
    """A script adds a header field to what upstream is sent, and one to what it answers: both
    arrive, and the answer is stored, as neither is what the key is about."""
    assert front.kinds("add-header") == ["MISS", "HIT"]
    (sent,) = (r for r in upstream.received if b"add-header" in r.body)
    assert sent.headers["x-added"] == "yes"
    _, (fetch,) = front.seen("add-header")
    assert fetch["headers"] == sent.headers
    assert front.ask("tell-header").headers["X-Told"] == "yes"
    front.proxy.stats()
    assert front.ask("tell-header").headers["X-Cache"] == "HIT"


def test_altered(front: Front, upstream: Simulator) -> None:
    """What a script has made of the request, or of the answer, is what the client gets, and is
    never stored: it is not what upstream says to the call of that key."""
    for word, calls in (("other-prompt", 2), ("other-answer", 2), ("answer-itself", 0),
                        ("other-credential", 2)):  # fmt: skip
        before = len(sampled(upstream))
        for _ in range(2):
            answer = front.ask(word)
            assert answer.status_code == 200, word
            assert cache_status(answer.headers) == "sglang-cached; fwd=miss; detail=altered"
            said = answer.json()["text"]
            assert (said == onlooker.ANSWER["text"]) is (word in ("other-answer", "answer-itself"))
        assert front.proxy.stats()["not_stored"]["altered"] >= 2
        assert len(sampled(upstream)) - before == calls
        client, _ = front.seen(word, 2)
        assert client["comment"].startswith("miss 0/1 (altered), fetch ")
    assert front.ask("other-status").status_code == 503


def test_a_part_is_altered(front: Front) -> None:
    """What a script has made of a part of an answer is put together with what is stored, and the
    part is not stored."""
    front.ask("part")
    front.proxy.stats()
    stored = front.ask("part").json()["text"]
    for _ in range(2):
        body = asking(GENERATE, "part one two", n=2)
        answer = post(front.proxy, GENERATE, body, headers={"X-Deed": "other-answer"})
        assert [native["text"] for native in answer.json()] == [stored, onlooker.ANSWER["text"]]
        assert cache_status(answer.headers).startswith("sglang-cached; fwd=partial;")


def test_a_stream_is_changed(front: Front) -> None:
    """A script changes the events of a stream as they pass, or has all of it wait: as with any flow
    of mitmproxy's. Changed ones are not stored."""
    for word, kinds in (("shout", ["MISS", "MISS"]), ("buffer", ["MISS", "HIT"])):
        found = []
        for _ in range(2):
            head, chunks = stream(front.proxy, GENERATE, asking(GENERATE, f"{word} one two"))
            found.append(head["x-cache"])
            front.proxy.stats()
            assert texts(GENERATE, chunks)[0].startswith("!") is (word == "shout")
        assert found == kinds, word


def test_killed(front: Front, upstream: Simulator) -> None:
    """Of a fetch that is killed the client gets a clear error, on a connection that lives, and
    upstream is not asked, or its answer is not stored; the next call is fetched as ever."""
    for word, calls in (("kill-request", 0), ("kill-answer", 1)):
        before = len(sampled(upstream))
        answer = front.ask(word)
        assert answer.status_code == 502
        assert answer.json()["error"]["message"] == (
            f"sglang-cached: the call to {upstream.url} was killed in mitmproxy"
        )
        assert cache_status(answer.headers).endswith("fwd-status=502; detail=killed")
        client, (fetch,) = front.seen(word)
        assert fetch["error"] == "Connection killed."
        assert client["comment"].startswith("miss 0/1 (killed), fetch ")
        assert len(sampled(upstream)) - before == calls
    assert front.kinds("after-a-kill") == ["MISS", "HIT"]


def test_held(front: Front, upstream: Simulator) -> None:
    """A fetch that is held is not sent, and its answer not given, until it is let go; then it goes
    on, or ends."""
    for word, verb, calls in (("hold-request", "resume", 0), ("hold-answer", "resume", 1),
                              ("hold-request", "kill", 0), ("hold-answer", "kill", 1)):  # fmt: skip
        text, begun = f"{word}-to-{verb}", time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(front.ask, text)
            until(lambda text=text: any(flow["held"] for flow in front.flows(text)))
            assert len([body for body in sampled(upstream) if text in body["text"]]) == calls
            assert not asked.done()
            seen = time.monotonic()
            until(lambda seen=seen: time.monotonic() > seen + 0.3)
            held = time.monotonic() - seen
            front.let_go(verb)
            assert asked.result().status_code == (200 if verb == "resume" else 502)
        took = time.monotonic() - begun
        front.seen(text)
        assert not any(flow["held"] for flow in front.flows(text))
        if verb == "resume":  # what it was held for is no time of upstream's
            front.proxy.stats()
            url = f"{front.proxy.url}/cache/entries"
            (entry,) = requests.get(url, {"text": text}, timeout=30).json()["entries"]
            (answer,) = requests.get(f"{url}/{entry['key']}", timeout=30).json()["answers"]
            assert 0 <= answer["seconds"] <= took - held


def test_who_leaves(front: Front, upstream: Simulator) -> None:
    """When nobody waits any more for a fetch that is held, it ends, and says so."""
    text = "hold-request for nobody"
    with closing(front.proxy.connect()) as client:
        body = json.dumps(asking(GENERATE, text)).encode()
        head = b"POST /generate HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        client.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: any(flow["held"] for flow in front.flows(text)))
    until(lambda: any(f["error"] == "nobody wants it any more" for f in front.flows(text)))
    assert not any(flow["held"] for flow in front.flows(text))
    assert not any(text in body["text"] for body in sampled(upstream))
    front.let_go("resume")


def test_a_script_that_fails(front: Front) -> None:
    """It spoils nothing."""
    for word in ("fail-request", "fail-answer"):
        assert front.kinds(word) == ["MISS", "HIT"]


def test_elsewhere(front: Front, upstream: Simulator) -> None:
    """Where a script sends a fetch to another server, it goes to upstream all the same: who answers
    is part of the key. The flow says so."""
    assert front.kinds("elsewhere") == ["MISS", "HIT"]
    _, (fetch,) = front.seen("elsewhere")
    assert fetch["url"] == f"{upstream.url}{GENERATE}"
    assert "an addon sends it to another server, but it goes to 127.0.0.1:" in fetch["comment"]


def test_without_upstream(front: Front, upstream: Simulator) -> None:
    """A fetch that fails is a flow with an error, and the client's says what became of the call."""
    upstream.faults.append(Fault.CUT)
    assert front.ask("is-cut").status_code == 502
    client, (fetch,) = front.seen("is-cut")
    assert "hung up" in fetch["error"]
    assert client["comment"].startswith("miss 0/1 (cut), fetch ")
    upstream.down()
    try:
        assert front.ask("is-gone").status_code == 502
        client, (fetch,) = front.seen("is-gone")
        assert fetch["error"] == "Connection refused"
    finally:
        upstream.up()
    numbers = count()  # until it has noticed that upstream was restarted
    until(lambda: front.kinds(f"back-{next(numbers)}") == ["MISS", "HIT"])


def test_questions(front: Front) -> None:
    """What upstream is asked for the cache itself is no flow, unless that is wanted."""
    front.ask("no-questions")
    front.seen("no-questions")
    paths = {flow["path"] for flow in front.flows("") if flow["asks"]}
    assert GENERATE in paths and paths <= {GENERATE, LISTS}


def test_another_credential(tmp_path: Path) -> None:
    """What upstream says to a credential that a script has put in the place of a client's says
    nothing of the client: what is stored is given to it without another question."""
    key, file = {"Authorization": "Bearer a"}, tmp_path / "flows"
    with running(Profile(api_key="a")) as upstream:
        arguments = ("-s", str(SCRIPT), "--set", f"onlooker_file={file}", "--show-probes")
        proxy = WAYS["lane"](upstream.url, tmp_path, *arguments)
        try:
            proxy.wait_until_ready()
            stored, refused = (asking(GENERATE, text) for text in ("stored", "other-credential"))
            assert post(proxy, GENERATE, stored, headers=key).headers["X-Cache"] == "MISS"
            proxy.stats()
            assert post(proxy, GENERATE, refused, headers=key).status_code == 401
            assert post(proxy, GENERATE, stored, headers=key).headers["X-Cache"] == "HIT"
            assert proxy.stop() == 0
        finally:
            end(proxy)
    shown = [flow for flow in Front(proxy, file).flows("") if flow["path"] == GENERATE]
    assert len([flow for flow in shown if flow["marked"] == ":satellite:"]) == 1


def test_questions_that_are_shown(upstream: Simulator, tmp_path: Path) -> None:
    """They are, with `--show-probes`."""
    file = tmp_path / "flows"
    arguments = ("-s", str(SCRIPT), "--set", f"onlooker_file={file}", "--show-probes")
    proxy = WAYS["lane"](upstream.url, tmp_path, *arguments)
    try:
        proxy.wait_until_ready()
        front = Front(proxy, file)
        front.ask("questions")
        front.seen("questions")
        body = {"model": "m", "input": ["one two", "three"]}
        post(proxy, "/v1/embeddings", body).raise_for_status()

        def shown() -> dict[str, set[str]]:
            flows = [flow for flow in front.flows("") if flow["asks"] and flow["status"]]
            marks = {flow["marked"] for flow in flows}
            return {mark: {f["path"] for f in flows if f["marked"] == mark} for mark in marks}

        asked = {"/model_info", "/server_info", GENERATE, "/tokenize"}
        fetched = {GENERATE, "/v1/embeddings"}
        until(lambda: asked <= shown().get(":satellite:", set()))
        until(lambda: fetched <= shown()[":outbox_tray:"])
        found = shown()
        assert found.keys() == {":satellite:", ":outbox_tray:"}
        assert found[":outbox_tray:"] == fetched
        assert proxy.stop() == 0
    finally:
        end(proxy)

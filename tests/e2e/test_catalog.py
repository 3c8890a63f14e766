"""What is stored, as people see it: lists, searches, one entry, what is in flight, and deletion."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import ask, asking, post
from tests.redis import RedisServer, needs_redis
from tests.simulator import Fault, Simulator

pytestmark = pytest.mark.one_way

GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"


def get(proxy: Proxy, path: str, **query: Any) -> dict[str, Any]:
    answer = requests.get(f"{proxy.url}/cache/{path}", params=query, timeout=30)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def whole_page(proxy: Proxy, **query: Any) -> dict[str, Any]:
    """A page of a list, looked for until none was cut short: that takes its time on a machine that
    is busy with much else."""

    def page() -> dict[str, Any] | None:
        found = get(proxy, "entries", **query)
        return None if found["stopped"] else found

    found: dict[str, Any] = until(page)
    return found


def keys(proxy: Proxy, **query: Any) -> list[str]:
    """The keys that a list has, page by page."""
    found: list[str] = []
    while True:
        page = get(proxy, "entries", **query)
        found += [entry["key"] for entry in page["entries"]]
        if page["next"] is None:
            return found
        query["cursor"] = page["next"]


def delete(proxy: Proxy, key: str, **query: Any) -> dict[str, Any]:
    answer = requests.delete(f"{proxy.url}/cache/entries/{key}", params=query, timeout=30)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def files_with(folder: Path, text: str) -> list[str]:
    """The names of the files that have a text."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in files if text.encode() in path.read_bytes())


def test_lists(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A list has what is stored, the newest first, page by page, and what is asked for of it."""
    proxy = start_proxy(simulator.url)
    for path in (GENERATE, COMPLETIONS, CHAT):
        for text in ("Grün ist die Heide", "blue sky", 'a "quoted"\nline'):
            ask(proxy, path, asking(path, text, n=2))
    page = whole_page(proxy)
    assert (len(page["entries"]), page["total"], page["next"]) == (9, 9, None)
    times = [entry["last_stored_at"] for entry in page["entries"]]
    assert times == sorted(times, reverse=True)
    first = page["entries"][0]
    assert (first["api"], first["samples"], first["is_current"]) == ("openai-chat", 2, True)
    assert first["model"] == proxy.info()["model"]["name"]
    assert first["request"] == 'a "quoted" line'
    assert first["answer"] and first["tokens"] == 16 and first["bytes"] > 100
    assert keys(proxy, limit=2) == [entry["key"] for entry in page["entries"]]
    now = time.time()
    for query, count in (
        ({"api": "openai-chat"}, 3), ({"api": "nothing"}, 0), ({"text": "GRÜN IST"}, 3),
        ({"text": "blue SKY"}, 3), ({"text": '"quoted"\nLine'}, 3), ({"text": "role"}, 0),
        ({"text": "blue sky", "api": "sglang-generate"}, 1), ({"model": "current"}, 9),
        ({"model": "other"}, 0), ({"model": first["model"]}, 9), ({"since": now + 60}, 0),
        ({"since": "1h"}, 9), ({"until": now - 3600}, 0), ({"until": now + 60}, 9),
        ({"text": page["entries"][0]["answer"][:20]}, 1),
    ):  # fmt: skip
        assert len(keys(proxy, **query)) == count, query
    for query, status in (
        ({"model": "unknown"}, 404), ({"run": "unknown"}, 404), ({"limit": 0}, 400),
        ({"odd": 1}, 400), ({"since": "soon"}, 400), ({"cursor": "soon"}, 400),
    ):  # fmt: skip
        answer = requests.get(f"{proxy.url}/cache/entries", params=query, timeout=30)
        assert answer.status_code == status, (query, answer.text)


def test_one_entry(simulator: Simulator, start_proxy: StartProxy) -> None:
    """An entry is found by the beginning of its key, and shows what was asked, each sample, and in
    which runs it was used."""
    proxy = start_proxy(simulator.url)
    for name in ("a", "a", "b"):
        answer = requests.post(
            f"{proxy.url}/run/{name}{CHAT}",
            json=asking(CHAT, "one two", temperature=0.9),
            timeout=30,
        )
        assert answer.status_code == 200
        proxy.stats()
    (key,) = keys(proxy)
    for prefix in (key, key[:4], key[:32], key[:20].upper()):
        entry = get(proxy, f"entries/{prefix}")
        assert entry["key"] == key
    assert entry["call"]["messages"] == [{"role": "user", "content": "one two"}]
    assert entry["texts"] == ["one two"]
    assert [answer["runs"] for answer in entry["answers"]] == [["a", "b"], ["a"]]
    for shown in entry["answers"]:
        assert shown["text"] == shown["answer"]["choices"][0]["message"]["content"]
        assert (shown["finish_reason"], shown["tokens"]) == ("length", 8)
        assert shown["seconds"] > 0 and shown["stored_at"] > time.time() - 60
    assert keys(proxy, run="a") == keys(proxy, run="b") == [key]
    ask(proxy, CHAT, asking(CHAT, "three"))
    answer = requests.get(f"{proxy.url}/cache/entries/{key[:8]}", timeout=30)
    assert (answer.status_code, answer.json()["keys"]) == (409, sorted(keys(proxy)))
    for prefix, status in (("abc", 400), ("xyz12", 400), ("0" * 64, 404), ("0123", 404)):
        answer = requests.get(f"{proxy.url}/cache/entries/{prefix}", timeout=30)
        assert answer.status_code == status, answer.text
    assert keys(proxy, run="a") == [key]


def test_flights(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What is in flight is shown with who waits for it."""
    proxy = start_proxy(simulator.url)
    ask(proxy, GENERATE, asking(GENERATE, "warm"))
    assert get(proxy, "flights") == {"flights": []}
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(3) as pool:
        asked = asking(COMPLETIONS, "one two", n=3)
        calls = [pool.submit(post, proxy, COMPLETIONS, asked) for _ in range(3)]
        until(lambda: [f["clients"] for f in get(proxy, "flights")["flights"]] == [3])
        (flight,) = get(proxy, "flights")["flights"]
        simulator.release()
    assert [call.result().status_code for call in calls] == [200] * 3
    assert flight["api"] == "openai-completion" and flight["path"] == COMPLETIONS
    assert (flight["model"], flight["samples"]) == ("m", 3)
    assert (flight["is_stream"], flight["run"]) == (False, None)
    assert flight["since"] > time.time() - 60


def test_deletion(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """What is deleted is gone: for clients at once, after a kill, and from the files when they are
    compacted."""
    proxy = start_proxy(simulator.url)
    first = ask(proxy, GENERATE, asking(GENERATE, "secret words", n=2)).json()
    ask(proxy, GENERATE, asking(GENERATE, "others"))
    (key,) = keys(proxy, text="secret words")
    until(lambda: files_with(tmp_path, "secret words") == ["cache.jsonl"])
    assert delete(proxy, key[:32]) == {"deleted": key, "samples": 2, "is_compacted": False}
    proxy.process.send_signal(signal.SIGKILL)
    proxy.process.wait(60)
    proxy = start_proxy(simulator.url)
    assert keys(proxy, text="secret words") == []
    again = ask(proxy, GENERATE, asking(GENERATE, "secret words", n=2))
    assert again.headers["X-Cache"] == "MISS"
    texts = {each["text"] for each in first}
    assert not texts & {each["text"] for each in again.json()}
    assert delete(proxy, key, now="true") == {"deleted": key, "samples": 2, "is_compacted": True}
    assert files_with(tmp_path, "secret words") == []
    assert not any(files_with(tmp_path, text) for text in texts)
    assert len(keys(proxy)) == 1
    missing = requests.delete(f"{proxy.url}/cache/entries/{key}", timeout=30)
    assert missing.status_code == 404


@needs_redis
def test_a_shared_store(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """What one proxy deletes is gone from the server and from the others; an entry is shown that
    others have stored, with the runs that all of them share."""
    with ExitStack() as stack:
        server = RedisServer(tmp_path)
        stack.callback(server.stop)
        one, two = (
            start_proxy(simulator.url, "--store", server.url, cache=tmp_path / name)
            for name in ("one", "two")
        )
        until(lambda: all(p.stats()["shared"]["state"] == "up" for p in (one, two)))
        asked = asking(GENERATE, "secret words")
        for proxy, name in ((one, "a"), (one, "a"), (two, "b")):
            url = f"{proxy.url}/run/{name}{GENERATE}"
            assert requests.post(url, json=asked, timeout=30).status_code == 200
            proxy.stats()
        until(lambda: not one.stats()["shared"]["pending"])
        (key,) = keys(one, text="secret words")

        # A server that is slow to answer is asked again.
        def tells(proxy: Proxy) -> bool:
            entry = requests.get(f"{proxy.url}/cache/entries/{key}", timeout=30).json()
            return [a["runs"] for a in entry.get("answers", ())] == [["a", "b"], ["a"]]

        def finds(proxy: Proxy, run: str) -> bool:
            url = f"{proxy.url}/cache/entries"
            page = requests.get(url, params={"run": run}, timeout=30).json()
            return [entry["key"] for entry in page.get("entries", ())] == [key]

        for proxy in (one, two):
            until(lambda proxy=proxy: tells(proxy))
            for run in ("a", "b"):
                until(lambda proxy=proxy, run=run: finds(proxy, run))
        text = get(two, f"entries/{key}")["answers"][0]["text"]
        with server.client() as client:
            assert client.keys(f"*{key}*:[0-9]*")
            assert delete(one, key, now="true")["is_compacted"]
            assert not client.keys(f"*{key}*:[0-9]*")
        until(lambda: not keys(two))
        assert files_with(tmp_path / "one", "secret words") == []
        other = start_proxy(simulator.url, "--store", server.url, cache=tmp_path / "three")
        again = ask(two, GENERATE, asked)
        assert again.headers["X-Cache"] == "MISS" and again.json()["text"] != text
        delete(two, key, now="true")
        assert files_with(tmp_path / "two", text) == files_with(tmp_path / "one", text) == []
        assert keys(other) == []


def test_a_follower(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A proxy that reads another one's folder shows what is there, and deletes nothing; what the
    owner deletes it does not give any more."""
    owner = start_proxy(simulator.url)
    ask(owner, GENERATE, asking(GENERATE, "one"))
    ask(owner, GENERATE, asking(GENERATE, "two"))
    follower = start_proxy(simulator.url, "--readonly")
    until(lambda: len(keys(follower)) == 2)
    (key,) = keys(follower, text="one")
    assert get(follower, f"entries/{key}")["texts"] == ["one"]
    refused = requests.delete(f"{follower.url}/cache/entries/{key}", timeout=30)
    assert refused.status_code == 500 and "ask its owner" in refused.json()["error"]["message"]
    assert keys(follower, text="one") == [key]
    for _ in range(2):  # from the disk, and from memory
        answer = ask(follower, GENERATE, asking(GENERATE, "one"))
        assert answer.headers["X-Cache"] == "HIT"
    delete(owner, key)
    until(lambda: not keys(follower, text="one"))
    answer = ask(follower, GENERATE, asking(GENERATE, "one"))
    assert answer.headers["X-Cache"] == "MISS"
    delete(owner, keys(owner)[0], now="true")
    until(lambda: not keys(follower))
    assert files_with(tmp_path, "two") == []


@needs_redis
def test_a_store_in_memory(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Without a folder, what is in memory is shown, with what was asked, and deleted."""
    server = RedisServer(tmp_path)
    server.stop()
    proxy = Proxy(
        ["--sglang-url", simulator.url, "--port", "0", "--host", "127.0.0.1",
         "--store", server.url],
        tmp_path,
    )  # fmt: skip
    try:
        proxy.wait_until_ready()
        ask(proxy, CHAT, asking(CHAT, "one"))
        (key,) = keys(proxy, text="ONE")
        assert get(proxy, f"entries/{key}")["texts"] == ["one"]
    finally:
        proxy.stop(signal.SIGKILL)


def test_deletion_in_a_run(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The calls of a run take the new samples of an entry that was deleted, from the first one on,
    and so does a run that comes later."""
    proxy = start_proxy(simulator.url)
    asked = asking(GENERATE, "one two")

    def draw(name: str) -> str:
        answer = requests.post(f"{proxy.url}/run/{name}{GENERATE}", json=asked, timeout=30)
        proxy.stats()
        return f"{answer.headers['X-Cache-Sample']} {answer.json()['text']}"

    before = [draw("a") for _ in range(3)]
    (key,) = keys(proxy)
    delete(proxy, key)
    post(proxy, GENERATE, asked)
    proxy.stats()
    after = [draw("a") for _ in range(2)]
    assert [text[0] for text in after] == ["0", "1"]
    assert not set(after) & set(before)
    assert [draw("b") for _ in range(2)] == after


def test_clear_of_a_name(start_proxy: StartProxy, simulator: Simulator, tmp_path: Path) -> None:
    """A clear of a model by its name leaves nothing of it in the files."""
    proxy = start_proxy(simulator.url)
    ask(proxy, GENERATE, asking(GENERATE, "secret words"))
    name = proxy.info()["model"]["name"]
    url = f"{proxy.url}/cache/clear"
    assert requests.post(url, params={"model": "other"}, timeout=30).json()["cleared_keys"] == 0
    assert requests.post(url, params={"model": name}, timeout=30).json()["cleared_keys"] == 1
    assert files_with(tmp_path, "secret words") == []
    assert keys(proxy) == []


def test_what_was_not_generated(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Vectors, tokens and counts are listed, found by what was asked, shown, counted by API, and
    left out of data sets of chats; so are messages, which are chats."""
    proxy = start_proxy(simulator.url)
    user = {"role": "user", "content": "a deep sea"}
    for path, body in (
        ("/v1/embeddings", {"model": "m", "input": ["a blue sky", "a green hill"]}),
        ("/tokenize", {"prompt": "a blue sea"}),
        ("/v1/rerank", {"query": "a colour", "documents": ["a blue hill", "a red sky"]}),
        ("/v1/messages/count_tokens", {"model": "m", "messages": [user]}),
        ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": [user]}),
    ):
        for outcome in ("MISS", "HIT"):
            assert post(proxy, path, body).headers["X-Cache"] == outcome, path
            proxy.stats()
    found = {entry["request"]: entry for entry in whole_page(proxy, text="blue")["entries"]}
    assert sorted(found) == ["a blue sea", "a blue sky", "a colour a blue hill"]
    vector, tokens = found["a blue sky"], found["a blue sea"]
    assert vector["api"] == "openai-embedding" and " numbers: [" in vector["answer"]
    assert "tokens: [" in tokens["answer"]
    one = get(proxy, f"entries/{vector['key']}")
    (sample,) = one["answers"]
    assert (sample["finish_reason"], sample["tokens"]) == (None, 0)
    assert isinstance(sample["answer"]["data"][0]["embedding"], str)
    assert len(keys(proxy, api="openai-embedding")) == 2
    said = whole_page(proxy, api="anthropic-messages")["entries"]
    assert [entry["request"] for entry in said] == ["a deep sea"] and said[0]["tokens"] > 0
    metrics = requests.get(f"{proxy.url}/cache/metrics", timeout=30).text
    for api in ("openai-embedding", "sglang-tokenize", "sglang-rerank", "anthropic-messages"):
        assert f'dialect="{api}",outcome="hit"' in metrics.replace(" ", "")
    delete(proxy, vector["key"], now="true")
    body = {"model": "m", "input": ["a blue sky", "a green hill"]}
    assert post(proxy, "/v1/embeddings", body).headers["X-Cache"] == "PARTIAL"

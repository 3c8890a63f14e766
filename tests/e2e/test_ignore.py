"""What users have left out of keys, over real sockets: one answer for calls that differ in nothing
else, and told where it was generated for another."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.cli.typed import typed
from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import CHAT, COMPLETIONS, GENERATE, ask, asking, post
from tests.e2e.conftest import WAYS
from tests.redis import RedisServer, needs_redis
from tests.simulator import Fault, Simulator
from tests.tables import each

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
CLAUDE_CODE = ("--ignore", "claude-code")


def header(number: int) -> str:
    """The line that Claude Code begins its system prompt with."""
    return (
        f"x-anthropic-billing-header: cc_version=2.1.{number}.0d9; cc_entrypoint=cli; "
        f"cch={number:05x};"
    )


SYSTEMS = {
    "blocks": lambda number: [
        {"type": "text", "text": header(number)},
        {"type": "text", "text": "You are Claude.", "cache_control": {"type": "ephemeral"}},
    ],
    "text": lambda number: f"{header(number)}\nYou are Claude.",
}


def claude(number: int, form: str = "blocks", text: str = "hi", **more: Any) -> dict[str, Any]:
    """A request of Claude Code; its billing line has this number."""
    tool = {"name": "Bash", "input_schema": {"type": "object"}}
    said = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    body = {"model": "m", "max_tokens": 8, "system": SYSTEMS[form](number), "messages": said}
    return {**body, "tools": [tool], "metadata": {"user_id": f"u{number}"}, **more}


def said(answer: requests.Response) -> tuple[str, str]:
    """What became of a call, and the detail that is told of it."""
    assert answer.status_code == 200, answer.text
    _, _, detail = answer.headers["Cache-Status"].partition("; detail=")
    return answer.headers["X-Cache"], detail


IGNORED = '"ignored: claude-code"'


def generated(simulator: Simulator) -> list[Any]:
    return [json.loads(r.body) for r in simulator.received if r.path in (MESSAGES, CHAT, GENERATE)]


def test_claude_code(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A request of Claude Code whose billing line alone has changed is a hit that says why; the
    first one once more says nothing, and the server was sent the client's own line."""
    proxy = start_proxy(simulator.url, *CLAUDE_CODE)
    for form, stream in itertools.product(SYSTEMS, (False, True)):
        more = {"text": f"{form} {stream}", "stream": stream}
        simulator.received.clear()
        first = ask(proxy, MESSAGES, claude(1, form, **more))
        assert said(first) == ("MISS", "")
        assert generated(simulator)[0]["system"] == SYSTEMS[form](1)
        second = ask(proxy, MESSAGES, claude(2, form, **more))
        assert said(second) == ("HIT", IGNORED)
        again = ask(
            proxy, f"{MESSAGES}?beta=true", claude(1, form, **more | {"stream": not stream})
        )
        assert said(again) == ("HIT", "")
        keys = {answer.headers["Cache-Status"].split('"')[1] for answer in (first, second, again)}
        assert (len(keys), len(generated(simulator))) == (1, 1)
        if stream:
            assert second.content == first.content
        for other in ({"text": f"another {form} {stream}"}, {"tools": []}, {"model": "n"}):
            assert said(ask(proxy, MESSAGES, claude(3, form, **more | other)))[0] == "MISS"


def test_off_by_itself(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Nothing is left out that nobody has asked for."""
    proxy = start_proxy(simulator.url)
    for number in (1, 2):
        assert said(ask(proxy, MESSAGES, claude(number))) == ("MISS", "")


def test_what_is_stored_stays(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What is stored from before a rule was set still answers the same call, and says nothing;
    what comes under the rule does not answer who has none."""
    plain = start_proxy(simulator.url)
    for body in (claude(1), claude(1, stream=True, text="s")):
        assert said(ask(plain, MESSAGES, body)) == ("MISS", "")
    plain.stop()
    ruled = start_proxy(simulator.url, *CLAUDE_CODE)
    for body in (claude(1), claude(1, stream=True, text="s"), claude(1, stream=True)):
        assert said(ask(ruled, MESSAGES, body)) == ("HIT", "")
    assert said(ask(ruled, MESSAGES, claude(2))) == ("MISS", "")
    assert said(ask(ruled, MESSAGES, claude(3))) == ("HIT", IGNORED)
    ruled.stop()
    again = start_proxy(simulator.url, *CLAUDE_CODE)  # from the disk
    assert said(ask(again, MESSAGES, claude(2))) == ("HIT", "")
    assert said(ask(again, MESSAGES, claude(4))) == ("HIT", IGNORED)
    again.stop()
    plain = start_proxy(simulator.url)
    assert said(ask(plain, MESSAGES, claude(1))) == ("HIT", "")
    for number in (2, 3):
        assert said(ask(plain, MESSAGES, claude(number))) == ("MISS", "")


def chat(day: int, text: str = "hi", **more: Any) -> dict[str, Any]:
    return asking(CHAT, f"day {day}. {text}", **more)


RULE = ("--ignore", r"messages[*].content=day \d+", "--ignore", r"text=day \d+")
RULE_1, RULE_2 = '"ignored: rule-1"', '"ignored: rule-2"'


@pytest.mark.one_way
def test_equal_at_the_same_time(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Calls that are equal by a rule are one fetch, and who did not begin it is told."""
    proxy = start_proxy(simulator.url, *RULE)
    with ThreadPoolExecutor(4) as pool:
        for stream, fault in itertools.product((False, True), (Fault.HOLD, Fault.PAUSE)):
            simulator.received.clear()
            simulator.faults.append(fault)
            text = f"{stream} {fault}"
            leader = pool.submit(post, proxy, CHAT, chat(1, text, stream=stream))
            until(lambda: simulator.waiting)
            same = pool.submit(post, proxy, CHAT, chat(1, text, stream=stream))
            others = [pool.submit(post, proxy, CHAT, chat(2, text, stream=stream)) for _ in "ab"]
            until(lambda: proxy.stats()["followers"] == 3)
            simulator.release()
            assert said(leader.result()) == ("MISS", "")
            assert said(same.result()) == ("COLLAPSED", "")
            assert [said(other.result()) for other in others] == [("COLLAPSED", RULE_1)] * 2
            assert len(generated(simulator)) == 1


@pytest.mark.one_way
def test_pools(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A pool is topped up by whoever lacks something of it, with the client's own call."""
    proxy = start_proxy(simulator.url, *RULE)
    assert said(ask(proxy, CHAT, chat(1))) == ("MISS", "")
    assert said(ask(proxy, CHAT, chat(2, n=3))) == ("PARTIAL", '"1 of 3 stored, ignored: rule-1"')
    assert [body["messages"][0]["content"] for body in generated(simulator)] == [
        "day 1. hi", "day 2. hi",
    ]  # fmt: skip
    for day, n, detail in ((1, 1, ""), (1, 2, RULE_1), (2, 1, RULE_1), (3, 3, RULE_1)):
        for stream in (False, True):
            assert said(ask(proxy, CHAT, chat(day, n=n, stream=stream))) == ("HIT", detail)


@pytest.mark.one_way
def test_lists(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A rule acts on those prompts of a list alone in which it matches."""
    rules = ("--ignore", r"text[*]=day \d+", "--ignore", r"text=day \d+")
    proxy = start_proxy(simulator.url, *rules)
    ask(proxy, GENERATE, asking(GENERATE, ["day 1 a", "plain"]))
    assert said(ask(proxy, GENERATE, asking(GENERATE, ["day 2 a", "plain"]))) == ("HIT", RULE_1)
    assert said(ask(proxy, GENERATE, asking(GENERATE, ["plain", "day 1 a"]))) == ("HIT", "")
    assert said(ask(proxy, GENERATE, asking(GENERATE, "plain"))) == ("HIT", "")
    assert said(ask(proxy, GENERATE, asking(GENERATE, "day 3 a"))) == ("HIT", RULE_2)


@pytest.mark.one_way
def test_runs(simulator: Simulator, start_proxy: StartProxy) -> None:
    """In a run, the k-th call that is equal by a rule gets the k-th sample."""
    proxy = start_proxy(simulator.url, *RULE)

    def texts(run: str, days: range) -> list[str]:
        answers = [ask(proxy, f"/run/{run}{CHAT}", chat(day)) for day in days]
        return [answer.json()["choices"][0]["message"]["content"] for answer in answers]

    first = texts("a", range(3))
    assert len(set(first)) == 3
    assert texts("b", range(5, 8)) == first
    assert len(generated(simulator)) == 3
    assert said(ask(proxy, f"/run/c{CHAT}", chat(0))) == ("HIT", "")
    assert said(ask(proxy, f"/run/c{CHAT}", chat(0))) == ("HIT", RULE_1)  # that of day 1
    with ThreadPoolExecutor(4) as pool:  # equal calls that come together are one fetch
        paths = [f"/run/d{CHAT}"] * 4
        bodies = [chat(day, "together") for day in (1, 2, 3, 4)]
        answers = list(pool.map(partial(ask, proxy), paths, bodies))
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 4
    details = Counter(said(answer)[1] for answer in answers)
    assert set(details) <= {"", RULE_1}


@pytest.mark.one_way
def test_greedy(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A greedy call is answered by another limit's answer, whichever of the equal calls that was
    for; both are told."""
    proxy = start_proxy(simulator.url, *RULE)
    long = {"max_tokens": 12, "temperature": 0, "model": "simulated"}
    assert said(ask(proxy, CHAT, {**chat(1), **long, "stream": True}))[0] == "MISS"
    cut = said(ask(proxy, CHAT, {**chat(2), **long, "max_tokens": 4}))
    assert cut == ("HIT", '"cut from 12 tokens, ignored: rule-1"')
    assert said(ask(proxy, CHAT, {**chat(1), **long, "max_tokens": 4})) == ("HIT", "")
    cut = said(ask(proxy, CHAT, {**chat(1), **long, "max_tokens": 5}))
    assert cut == ("HIT", '"cut from 12 tokens"')


@pytest.mark.one_way
def test_what_is_of_its_text_alone(simulator: Simulator, start_proxy: StartProxy) -> None:
    """No rule acts where nothing is generated, or where the answer shows the prompt."""
    proxy = start_proxy(simulator.url, *CLAUDE_CODE, "--ignore", r"**=day \d+")
    counted = {name: claude(1)[name] for name in ("model", "messages", "system")}
    other = {**counted, "system": claude(22)["system"]}
    calls: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (COUNT, counted, other),
        ("/v1/embeddings", {"model": "m", "input": "day 1"}, {"model": "m", "input": "day 2"}),
        ("/v1/embeddings", {"model": "m", "input": ["day 3"]}, {"model": "m", "input": ["day 4"]}),
        ("/v1/tokenize", {"prompt": "day 1"}, {"prompt": "day 2"}),
        (COMPLETIONS, asking(COMPLETIONS, "day 1", echo=True),
         asking(COMPLETIONS, "day 2", echo=True)),
    ]  # fmt: skip
    for path, first, second in calls:
        for body in (first, second):
            assert said(ask(proxy, path, body)) == ("MISS", ""), path
            assert said(ask(proxy, path, body)) == ("HIT", ""), path


@pytest.mark.one_way
def test_who_asks_nobody(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """What a rule makes a hit is one to who wants nothing else, to a proxy that asks nobody, and to
    one that reads the folder of another; to who reads it without the rule, it is none."""
    (tmp_path / "cache").mkdir()
    toml = tmp_path / "cache" / "ignore.toml"
    toml.write_text("[day]\npath = 'messages[*].content'\nregex = 'day \\d+'\n")
    proxy = start_proxy(simulator.url)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert said(ask(proxy, CHAT, chat(1))) == ("MISS", "")
    until(lambda: proxy.stats()["pending_writes"] == 0)
    headers = {"Cache-Control": "only-if-cached"}
    assert said(ask(proxy, CHAT, chat(2), headers)) == ("HIT", '"ignored: day"')
    assert post(proxy, CHAT, chat(2, "ho"), headers=headers).status_code == 504
    follower = start_proxy(simulator.url, "--readonly")
    assert said(ask(follower, CHAT, chat(2))) == ("HIT", '"ignored: day"')
    follower.stop()
    toml.unlink()
    follower = start_proxy(simulator.url, "--readonly")
    assert said(ask(follower, CHAT, chat(2)))[0] == "MISS"
    follower.stop()
    proxy.stop()
    toml.write_text("[day]\npath = 'messages[*].content'\nregex = 'day \\d+'\n")
    proxy = start_proxy(simulator.url, "--mode", "offline")
    assert said(ask(proxy, CHAT, chat(3))) == ("HIT", '"ignored: day"')


@pytest.mark.one_way
def test_what_people_see(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """`/cache/info` shows the rules, and it is explained which of them act on a call."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ignore.toml").write_text(
        "[claude-code]\n[day]\npath = 'messages[*].content'\nregex = 'day \\d+'\n"
        "apis = ['openai-chat']\n"
    )
    proxy = start_proxy(simulator.url, "--ignore", "text=x y")
    rules = proxy.info()["settings"]["ignore"]
    assert [rule["name"] for rule in rules] == ["rule-1", "claude-code", "day"]
    assert rules[0] == {"name": "rule-1", "path": ["text"], "regex": "x y", "apis": None}
    assert rules[2]["apis"] == ["openai-chat"]
    first = ask(proxy, CHAT, chat(1))
    key = first.headers["Cache-Status"].split('"')[1]

    def explained(body: dict[str, Any]) -> dict[str, Any]:
        asked = {"path": CHAT, "body": body}
        return requests.post(f"{proxy.url}/cache/explain", json=asked, timeout=30).json()

    found = explained(chat(2))
    assert (found["outcome"], found["ignored"], found["key"][:32]) == ("hit", ["day"], key)
    assert "something else" in found["text"]
    assert "something else" not in explained(chat(1))["text"]
    assert explained(asking(CHAT, "none"))["ignored"] == []
    assert "(ignored: day)" not in proxy.log
    ask(proxy, CHAT, chat(2))
    until(lambda: "(ignored: day)" in proxy.log)
    proxy.stop()
    call = tmp_path / "call.json"
    call.write_text(json.dumps(chat(2)))
    done = typed("explain", str(call), cache=tmp_path / "cache")  # in the folder, without a proxy
    assert done.returncode == 0, done.stderr
    assert re.search(r"ignored +day\n", done.stdout)
    shown = typed("show", key, "--json", cache=tmp_path / "cache")
    assert "day 1. hi" in shown.stdout


@pytest.mark.one_way
def test_carried_elsewhere(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """What was generated for which call is known in other folders, too."""
    proxy = start_proxy(simulator.url, *RULE)
    ask(proxy, CHAT, chat(1))
    ask(proxy, CHAT, chat(2, n=2, stream=True))
    proxy.stop()
    done = typed("export", str(tmp_path / "a.jsonl"), cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    folders = [tmp_path / "imported", tmp_path / "merged"]
    done = typed("import", str(tmp_path / "a.jsonl"), cache=folders[0])
    assert done.returncode == 0, done.stderr
    done = typed("merge", str(tmp_path / "cache"), "--into", str(folders[1]))
    assert done.returncode == 0, done.stderr
    for folder in folders:
        proxy = start_proxy(simulator.url, *RULE, cache=folder)
        assert said(ask(proxy, CHAT, chat(1))) == ("HIT", "")
        assert said(ask(proxy, CHAT, chat(2))) == ("HIT", RULE_1)
        assert said(ask(proxy, CHAT, chat(1, n=2))) == ("HIT", RULE_1)
        proxy.stop()


@pytest.mark.one_way
@needs_redis
def test_several_proxies(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Proxies with the same rule share what it joins; those with another one, or none, do not."""
    server = RedisServer(tmp_path)
    try:

        def start(*rules: str) -> Proxy:
            folder = tmp_path / f"proxy-{len(started)}"
            started.append(start_proxy(simulator.url, "--store", server.url, *rules, cache=folder))
            until(lambda: started[-1].stats()["shared"]["state"] == "up")
            return started[-1]

        started: list[Proxy] = []
        same = [start(*RULE), start("--ignore", r"**=day \d+")]
        others = [start("--ignore", r"**=day [0-9]+"), start()]
        assert said(ask(same[0], CHAT, chat(1))) == ("MISS", "")
        until(lambda: same[0].stats()["shared"]["pending"] == 0)
        assert said(ask(same[1], CHAT, chat(2))) == ("HIT", RULE_1)
        assert said(ask(same[1], CHAT, chat(1))) == ("HIT", "")
        for other in others:
            assert said(ask(other, CHAT, chat(2)))[0] == "MISS"
    finally:
        server.stop()


@pytest.mark.one_way
def test_ways_in(simulator: Simulator, tmp_path: Path) -> None:
    """As an option of mitmproxy, and in the environment, there is a rule in each line."""
    rules = "claude-code\nmessages[*].content=day \\d+, or \\w+"
    started = [WAYS["mitmdump"](simulator.url, tmp_path, "--set", f"sglang_ignore={rules}")]
    (tmp_path / "b").mkdir()
    place = ["--port", "0", "--host", "127.0.0.1", "--cache-path", str(tmp_path / "b" / "cache")]
    environment = {"SGLANG_CACHED_IGNORE": rules}
    arguments = ["--sglang-url", simulator.url, *place]
    started.append(Proxy(arguments, tmp_path / "b", env=environment))
    try:
        for proxy in started:
            proxy.wait_until_ready()
            assert said(ask(proxy, MESSAGES, claude(1))) == ("MISS", "")
            assert said(ask(proxy, MESSAGES, claude(2))) == ("HIT", IGNORED)
            assert said(ask(proxy, CHAT, chat(1, "x day 1, or a"))) == ("MISS", "")
            assert said(ask(proxy, CHAT, chat(1, "x day 2, or b"))) == ("HIT", RULE_1)
    finally:
        for proxy in started:
            proxy.stop()


@each(
    ("arguments", "toml", "why"),
    [
        (["--ignore", "claude"], "", "sglang_ignore: 'claude' is neither PATH=REGEX nor"),
        (["--ignore", "a..b=x"], "", "is no path: write names with dots between"),
        (["--ignore", "a=(?=b)"], "", "is no regular expression of RE2"),
        ([], "[day]\npath = 'text'\n", "ignore.toml: [day]: there is no regex"),
        ([], "[day\n", "ignore.toml: "),
        ([], "[a]\npath='text'\nregex='x'\napis=['none']\n", "no API is called 'none': anthropic-"),
    ],
)
def test_mistakes(arguments: list[str], toml: str, why: str, tmp_path: Path) -> None:
    """A wrong rule ends the start, with one line that says what to do."""
    (tmp_path / "cache").mkdir(0o700, exist_ok=True)
    (tmp_path / "cache" / "ignore.toml").write_text(toml)
    url = ["--sglang-url", "http://127.0.0.1:1", "--port", "0", "--host", "127.0.0.1"]
    done = typed("start", *url, *arguments, cache=tmp_path / "cache")
    assert done.returncode == 1
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.one_way
def test_what_is_echoed(simulator: Simulator, start_proxy: StartProxy) -> None:
    """An answer that repeats what it was asked has each client's own, also where a rule has left it
    out, and also while it is fetched for another."""
    path = "/v1/responses"
    proxy = start_proxy(simulator.url, "--ignore", r"instructions=day \d+")

    def call(day: int, stream: bool) -> dict[str, Any]:
        asked = {"model": "m", "input": f"one {stream}", "max_output_tokens": 10, "store": False}
        return {**asked, "instructions": f"day {day}", "stream": stream}

    def days(answer: requests.Response) -> set[str]:
        return set(re.findall(r"day \d+", answer.text))

    for stream in (False, True):
        assert said(ask(proxy, path, call(1, stream))) == ("MISS", "")
        for day, detail in ((2, RULE_1), (1, "")):
            for form in (stream, not stream):
                answer = ask(proxy, path, {**call(day, stream), "stream": form})
                assert said(answer) == ("HIT", detail)
                assert days(answer) == {f"day {day}"}
    with ThreadPoolExecutor(2) as pool:
        simulator.faults.append(Fault.PAUSE)
        live = {"input": "live", "stream": True}
        leader = pool.submit(post, proxy, path, {**call(1, True), **live})
        until(lambda: simulator.waiting)
        other = pool.submit(post, proxy, path, {**call(2, True), **live})
        until(lambda: proxy.stats()["followers"] == 1)
        simulator.release()
        assert said(leader.result()) == ("MISS", "")
        assert said(other.result()) == ("COLLAPSED", RULE_1)
        assert [days(leader.result()), days(other.result())] == [{"day 1"}, {"day 2"}]

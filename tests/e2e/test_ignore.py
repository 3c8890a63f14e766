"""What users have left out of keys, over real sockets: one answer for calls that differ in nothing
else, and told where it was generated for another."""

from __future__ import annotations

import itertools
import json
from typing import Any

import requests

from tests.conftest import StartProxy
from tests.e2e.calls import CHAT, GENERATE, ask
from tests.simulator import Simulator

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
CLAUDE_CODE = ("--ignore", "claude-code")
DAY = r"messages[*].content=day \d+"


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

"""What people see of calls in mitmproxy, of each version."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
from mitmproxy import contentviews, http
from mitmproxy.test import taddons, tflow, tutils

from sglang_cached_addon.dialects import installed
from sglang_cached_addon.proxy.contentview import (
    NAME,
    NOT_OURS,
    Contentview,
    ContentViews,
    View,
    shown,
)
from tests.mitmweb import Web, web_proxy
from tests.simulator import Profile, Simulator, running
from tests.tables import each

BODY = {"text": "The sea is", "sampling_params": {"max_new_tokens": 3, "n": 2}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
COMPLETION = {"model": "m", "prompt": ["one", "two"], "max_tokens": 3}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with running(Profile()) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def web(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web_proxy(simulator.url, tmp_path_factory.mktemp("web")) as found:
        yield found


def test_generate(web: Web) -> None:
    """In mitmweb, a person sees prompt, parameters, samples, and what the cache said."""
    for said in ("MISS · stored now", r"HIT · \d+ s old"):
        request, answer = web.ask("/generate", BODY)
        assert re.match(f"cache: {said} · samples 0-1 · key ", request), request
        assert "── prompt ─" in request and "\nThe sea is\n" in request
        assert "sampling_params.max_new_tokens  3\n" in request
        assert re.match(f"cache: {said} · samples 0-1 · key ", answer)
        assert "── sample 1 of 2 · length · 3 tokens" in answer
        assert "── sample 2 of 2 · length · 3 tokens" in answer
    _, answer = web.ask("/generate", {**BODY, "sampling_params": {"max_new_tokens": 3, "n": 3}})
    assert answer.startswith("cache: PARTIAL · 2 of 3 stored · stored now · "), answer
    assert "── sample 3 of 3" in answer


def test_openai(web: Web) -> None:
    """So it is with the other APIs."""
    request, answer = web.ask("/v1/chat/completions", CHAT)
    assert "── user ─" in request and "\nHello\n" in request
    assert "── sample 1 of 1 · length · 3 tokens" in answer
    request, answer = web.ask("/v1/completions", COMPLETION)
    assert "── prompt 2 of 2 ─" in request
    assert "── prompt 2, sample 1 of 1 · length ─" in answer


def test_streams(web: Web) -> None:
    """A stream is shown as its samples, generated or stored: its events are put together."""
    asked = {**BODY, "text": "A stream", "stream": True}
    seen = []
    for said in ("MISS", "HIT"):
        _, answer = web.ask("/generate", asked)
        assert answer.startswith(f"cache: {said} · "), answer
        assert "no end" not in answer
        seen.append(re.findall(r"── (sample \d of 2 · length · 3 tokens).*\n(.*)", answer))
    assert len(seen[0]) == 2 and seen[0] == seen[1]


def test_errors(web: Web) -> None:
    """What upstream refuses is shown with its reason."""
    _, answer = web.ask("/generate", {"text": "a", "sampling_params": {"top_p": 7}})
    assert answer.startswith("cache: MISS · the server answered 400 · ")
    assert "── error ─" in answer and "top_p must be in (0, 1], got 7" in answer


def test_other_flows(web: Web) -> None:
    """All that is not of a cached API is shown by mitmproxy's own views."""
    requests.get(f"{web.proxy.url}/cache/stats", timeout=30)
    flow = next(f for f in web.page.flows() if f["request"]["path"] == "/cache/stats")
    assert web.page.shown(flow["id"], "response").startswith("{\n")
    assert NAME in web.page.views()


def flow_of(body: bytes, answer: bytes) -> http.HTTPFlow:
    request = tutils.treq(method=b"POST", path=b"/generate", content=body)
    fields = ((b"x-cache", b"HIT"), (b"cache-status", b"sglang-cached; hit"))
    response = tutils.tresp(headers=http.Headers(fields), content=answer)
    return tflow.tflow(req=request, resp=response)


class Metadata:
    """What mitmproxy 12 tells of a body."""

    def __init__(self, flow: Any, message: Any) -> None:
        self.flow, self.http_message = flow, message


ANSWER = orjson.dumps({"text": "a\nb", "meta_info": {"finish_reason": {"type": "stop"}}})


def test_both_kinds() -> None:
    """What mitmproxy 11 and what mitmproxy 12 calls a content view show the same lines."""
    flow = flow_of(b'{"text":"q"}', ANSWER)
    for message in (flow.request, flow.response):
        assert message
        data = message.raw_content or b""
        text = Contentview().prettify(data, Metadata(flow, message))
        name, lines = View()(data, flow=flow, http_message=message, content_type="x", odd=1)
        assert name == NAME
        assert "\n".join(words.rstrip() for ((_, words),) in lines) == text
        assert all(words for ((_, words),) in lines)  # an empty one would not be seen
        assert text.startswith("cache: HIT\nsglang-generate")
        styles = [style for ((style, _),) in lines]
        assert set(styles) == {"header", "text"}
        new = Contentview().render_priority(data, Metadata(flow, message))
        assert new == View().render_priority(data, flow=flow, http_message=message) > 2
    assert Contentview() < View() or Contentview().name == View().name


@each(
    ("method", "path", "body", "is_ours"),
    [
        (b"POST", b"/generate", b"{}", True),
        (b"POST", b"/generate?x=1", b"{}", True),
        (b"POST", b"/generate", b"", False),
        (b"GET", b"/generate", b"{}", False),
        (b"POST", b"/v1/messages?beta=true", b"{}", True),
        (b"POST", b"/v1/audio/speech", b"{}", False),
    ],
)
def test_whose(method: bytes, path: bytes, body: bytes, is_ours: bool) -> None:
    """The view is for calls that have a body; it leaves all else to others."""
    flow = tflow.tflow(req=tutils.treq(method=method, path=path, content=body))
    found = View().render_priority(body, flow=flow, http_message=flow.request)
    assert (found != NOT_OURS) is is_ours
    assert View().render_priority(b"{}", flow=tflow.ttcpflow()) == NOT_OURS
    assert View().render_priority(b"{}") == NOT_OURS


def test_chosen_for_others() -> None:
    """Who chooses the view for another body sees that as it is."""
    assert [text for _, text in shown(b"a\nb", None, None)] == ["", "a", "b"]


class Broken:
    """A display that others wrote, and wrongly."""

    spoken = ()

    def passages(self, body: Any) -> Any:
        raise KeyError("oh")

    reader = passages


def test_broken_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialect of others that fails has its bodies shown all the same."""
    monkeypatch.setattr(type(installed()["POST", "/generate"]), "display", Broken())
    flow = flow_of(b'{"text":"q"}', ANSWER)
    assert [text for _, text in shown(b"{}", flow, flow.request)] == ["", "{}"]
    assert [text for _, text in shown(ANSWER, flow, flow.response)] == ["", ANSWER.decode()]


def names() -> list[str]:
    """The names of mitmproxy's content views."""
    registry = getattr(contentviews, "registry", None)
    found = registry.available_views() if registry else [v.name for v in contentviews.views]  # type: ignore[attr-defined]
    return list(found)


def test_comes_and_goes() -> None:
    """The view is there while the addon is loaded, and can come again, as when a script is loaded
    anew."""
    before = names()

    async def come_and_go() -> None:
        addon = ContentViews()
        with taddons.context(addon, loadcore=False):
            assert sorted(names()) == sorted([*before, NAME])
        addon.done()
        addon.done()
        assert names() == before

    for _ in range(2):
        asyncio.run(come_and_go())

"""A script for mitmproxy that looks on while tests run: it writes each flow down whenever that
changes, and does to a fetch what its body, or its header `X-Deed`, names.

A request with the header `X-Held` lets go of the fetches that it holds: they are to `resume`, or it
is to `kill` them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from mitmproxy import ctx, flow, http
from mitmproxy.addonmanager import Loader

ASKS = "sglang_cached_asks"
"""In the metadata of flows that the cache asks upstream in."""

ANSWER = {
    "text": "of the script",
    "meta_info": {
        "id": "1",
        "finish_reason": {"type": "length", "length": 8},
        "prompt_tokens": 3,
        "completion_tokens": 8,
    },
}

held: list[http.HTTPFlow] = []


def hold(fetch: http.HTTPFlow) -> None:
    fetch.intercept()
    held.append(fetch)


def fail(fetch: http.HTTPFlow) -> None:
    raise ValueError("the script fails")


def shout(data: bytes) -> bytes:
    return re.sub(rb'"text": ?"', b'"text":"!', data)


REQUEST: dict[str, Callable[[http.HTTPFlow], Any]] = {
    "add-header": lambda fetch: fetch.request.headers.update({"X-Added": "yes"}),
    "other-prompt": lambda fetch: fetch.request.set_text(fetch.request.get_text() + " "),
    "other-credential": lambda fetch: fetch.request.headers.update({"Authorization": "Bearer b"}),
    "elsewhere": lambda fetch: setattr(fetch.request, "port", 1),
    "answer-itself": lambda fetch: setattr(
        fetch, "response", http.Response.make(200, json.dumps(ANSWER), {"X-Of": "script"})
    ),
    "kill-request": lambda fetch: fetch.kill(),
    "hold-request": hold,
    "fail-request": fail,
}  # fmt: skip
"""What can be done to a request before it is sent, by the word in its body."""

HEAD: dict[str, Callable[[http.HTTPFlow], Any]] = {
    "shout": lambda fetch: setattr(fetch.response, "stream", shout),
    "buffer": lambda fetch: setattr(fetch.response, "stream", False),
}
"""What can be done when the head of its answer has come."""

RESPONSE: dict[str, Callable[[http.HTTPFlow], Any]] = {
    "other-answer": lambda fetch: fetch.response.set_content(json.dumps(ANSWER).encode()),
    "other-status": lambda fetch: setattr(fetch.response, "status_code", 503),
    "tell-header": lambda fetch: fetch.response.headers.update({"X-Told": "yes"}),
    "kill-answer": lambda fetch: fetch.kill(),
    "hold-answer": hold,
    "fail-answer": fail,
}
"""What can be done when all of its answer has come."""


class Onlooker:
    """What mitmproxy calls."""

    def load(self, loader: Loader) -> None:
        loader.add_option("onlooker_file", str, "", "Where flows are written down.")

    def request(self, asked: http.HTTPFlow) -> None:
        if verb := asked.request.headers.get("x-held"):
            while held:
                fetch = held.pop()
                getattr(fetch, verb)()
                self.update([fetch])
        self._do(asked, REQUEST)

    def responseheaders(self, asked: http.HTTPFlow) -> None:
        self._do(asked, HEAD)

    def response(self, asked: http.HTTPFlow) -> None:
        self._do(asked, RESPONSE)

    def _do(self, asked: http.HTTPFlow, deeds: dict[str, Callable[[http.HTTPFlow], Any]]) -> None:
        if ASKS in asked.metadata and not asked.is_replay:
            text = asked.request.get_text(strict=False) or ""
            text += asked.request.headers.get("x-deed", "")
            for word, deed in deeds.items():
                if word in text:
                    deed(asked)

    def update(self, flows: Sequence[flow.Flow]) -> None:
        with open(ctx.options.onlooker_file, "a") as file:
            for one in flows:
                if isinstance(one, http.HTTPFlow):
                    file.write(json.dumps(written(one)) + "\n")


def written(one: http.HTTPFlow) -> dict[str, Any]:
    """A flow, as tests read it."""
    request, response, server = one.request, one.response, one.server_conn
    return {
        "id": one.id,
        "asks": ASKS in one.metadata,
        "comment": one.comment,
        "marked": one.marked,
        "replay": one.is_replay,
        "held": one.intercepted,
        "error": one.error.msg if one.error else None,
        "client": one.client_conn.peername[0],
        "server": server.peername,
        "path": request.path,
        "url": request.url,
        "headers": {name.lower(): value for name, value in request.headers.items()},
        "body": request.get_text(strict=False),
        "status": response and response.status_code,
        "told": response and {name.lower(): value for name, value in response.headers.items()},
        "answer": response and response.get_text(strict=False),
        "connected": server.timestamp_tcp_setup,
        "times": [
            request.timestamp_start,
            request.timestamp_end,
            response and response.timestamp_start,
            response and response.timestamp_end,
        ],
    }


addons = [Onlooker()]

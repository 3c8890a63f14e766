"""Every recorded pair of SGLang 0.5.23 goes through the proxy twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects import installed
from tests.conftest import Proxy, corpus
from tests.e2e.conftest import StartFront
from tests.replayer import INFO, Replayer, replaying
from tests.simulator import is_probe
from tests.tables import each

# The proxy answers this path itself, and asks what asks for nothing of its own accord.
PAIRS = [
    pair
    for pair in corpus()
    if pair["request"]["path"] != "/health"
    and pair["name"] != "rerank-top"  # the server is asked for all, and not for the best alone
    and not is_probe((pair["request"].get("body") or "").encode())
]
ROUTES = {path for _, path in installed()}


@pytest.fixture(scope="module")
def replayer() -> Iterator[Replayer]:
    with replaying() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def front(replayer: Replayer, start_front: StartFront) -> Proxy:
    return start_front(replayer.url)


def is_cacheable(pair: dict[str, Any]) -> bool:
    """Whether the second request must not reach upstream."""
    request = pair["request"]
    return (
        request["path"] in ROUTES
        and request["method"] in ("POST", "PUT")
        and pair["response"]["status"] == 200
        and _is_whole(pair)
        and _is_understood(request)
    )


def _is_understood(request: dict[str, Any]) -> bool:
    try:
        return bool(installed()["POST", request["path"]].read(json.loads(request["body"])))
    except Refused:
        return False


def _is_whole(pair: dict[str, Any]) -> bool:
    """A stream that the proxy has not asked for itself has no usage where nobody wanted it."""
    body, answer = json.loads(pair["request"]["body"]), pair["response"]["body"]
    if _ERROR.search(answer):
        return False
    if "completions-list" in pair["name"] or pair["name"] == "decisions":
        return False  # the proxy asks for more, so that each prompt's own tokens are told
    if "max_tokens" in body and "/v1/messages" in pair["request"]["path"]:
        return "tools-cut" not in pair["name"]
    if pair["request"]["path"] == "/v1/responses":
        return not (body.get("stream") and "tools" in body and "response.incomplete" in answer)
    return not body.get("stream") or "text" in body or "stream_options" in body


_ERROR = re.compile('"error": ?[{"]')


def same(answer: bytes, recorded: bytes, *, ordered: bool) -> bool:
    """Byte for byte; choices side by side may take turns otherwise, and each keeps its id to
    its end, where SGLang gives the ends of all the id of whichever spoke last."""
    if ordered or b"data: " not in recorded:
        return answer == recorded
    loose = [sorted(_ENDS.sub(b"", data).split(b"\n\n")) for data in (answer, recorded)]
    return loose[0] == loose[1]


_ENDS = re.compile(rb'"id":"[0-9a-f]{32}",(?=[^\n]*("choices":\[\]|"finish_reason":"))')


@each("pair", PAIRS)
def test_twice(pair: dict[str, Any], replayer: Replayer, front: Proxy) -> None:
    """A client sees what SGLang recorded, the first time and the second."""
    requests.post(f"{front.url}/cache/clear", timeout=30).raise_for_status()
    replayer.pair = pair
    replayer.received.clear()
    request, recorded = pair["request"], pair["response"]
    for turn in range(2):
        answer = requests.request(
            request["method"],
            front.url + request["path"],
            data=(request.get("body") or "").encode(),
            headers=request["headers"],
            timeout=30,
            allow_redirects=False,
        )
        assert answer.status_code == recorded["status"]
        assert answer.text.encode() == answer.content
        if "repeated" not in pair["name"]:  # equal rows, asked for once: their last bits differ
            assert same(answer.content, recorded["body"].encode(), ordered=not turn)
        wanted = dict(recorded["headers"]).get("content-type")
        assert answer.headers.get("content-type") == wanted
        if is_cacheable(pair):
            assert answer.headers["X-Cache"] == ("HIT" if turn else "MISS")
            assert len(replayer.received) == 1
        else:
            assert answer.headers.get("X-Cache") in (None, "BYPASS", "MISS")
            # The proxy, too, asks upstream who it is.
            assert len(replayer.received) == turn + 1 or request["path"] in INFO

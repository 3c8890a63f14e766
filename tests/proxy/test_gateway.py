"""What clients see when upstream gives no answer, byte by byte on real sockets."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from sglang_cached_addon.core.policy import MAX_BODY
from tests.conftest import StartProxy
from tests.hearing import hearing, saying
from tests.ports import dead_url

GARBAGE = {
    "nothing": b"",
    "not HTTP": b"hello\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
}


def test_no_answer_is_json(start_proxy: StartProxy) -> None:
    """An upstream that talks nonsense gives a 502 with JSON, on a connection that lives; an answer
    that it cuts is cut for the client too, never completed."""
    with saying() as upstream, requests.Session() as session:
        url = f"{start_proxy(upstream.url).url}/v1/models"
        for name, upstream.data in GARBAGE.items():
            for method in ("GET", "POST", "HEAD") * 2:
                answer = session.request(method, url, timeout=30)
                said = (answer.status_code, answer.headers["content-type"])
                assert said == (502, "application/json"), name
                if method != "HEAD":
                    assert upstream.url in answer.json()["error"]["message"]
        upstream.data = b"HTTP/1.1 404 No\r\nContent-Length: 100\r\n\r\nhalf"
        with pytest.raises(requests.exceptions.RequestException):
            requests.get(url, timeout=30)


def test_upload_to_nowhere(start_proxy: StartProxy) -> None:
    """A large upload to an upstream that is not there ends with 502 or a closed connection."""
    proxy = start_proxy(dead_url())
    try:
        answer = requests.post(f"{proxy.url}/upload", data=b"x" * (8 << 20), timeout=30)
    except requests.exceptions.ConnectionError:
        return
    assert answer.status_code == 502
    assert requests.get(f"{proxy.url}/health", timeout=30).ok


def test_a_large_body_in_chunks(start_proxy: StartProxy, tmp_path: Path) -> None:
    """Upstream gets a large body whose size is not said as it comes, and its answer is not stored;
    where upstream must not be asked, it gets nothing."""
    piece, count = b"x" * (1 << 20), 24
    body = hashlib.sha256(piece * count).hexdigest()
    with hearing() as upstream:
        for ways in ([], ["--set", "sglang_express=false"]):
            proxy = start_proxy(upstream.url, *ways, cache=tmp_path / str(len(ways)))
            assert requests.post(f"{proxy.url}/generate", data=iter([b"x"]), timeout=30).ok
            before = proxy.peak()
            for path in ("/generate", "/v1/other", "/load_lora_adapter"):
                upstream.heard.clear()
                answer = requests.post(
                    f"{proxy.url}{path}",
                    data=(piece for _ in range(count)),
                    headers={"Content-Type": "application/json"},
                    timeout=30,
                )
                assert answer.status_code == 200
                (heard,) = upstream.asked(path)
                assert hashlib.sha256(heard.body).hexdigest() == body
                if path == "/generate":
                    assert "detail=too-large" in answer.headers["Cache-Status"]
            assert proxy.peak() - before < 4 * MAX_BODY
            upstream.heard.clear()
            for path in ("/generate", "/v1/other"):
                with suppress(requests.exceptions.ConnectionError):
                    refused = requests.post(
                        f"{proxy.url}{path}",
                        data=(piece for _ in range(count)),
                        headers={"Cache-Control": "only-if-cached"},
                        timeout=30,
                    )
                    assert refused.status_code == 413
                assert not upstream.asked(path)
            assert proxy.stop() == 0
            assert "Traceback" not in proxy.log

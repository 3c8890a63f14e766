"""What the doctor asks other servers; Redis is asked in `test_doctor`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sglang_cached_addon.cli.server_checkup import ask_server
from sglang_cached_addon.upstream.asking import Verdict
from tests.certificates import self_signed
from tests.conftest import corpus
from tests.ports import free_port
from tests.replayer import replaying
from tests.simulator import Profile, running


def test_keys() -> None:
    """A server that wants a key is shown the one that is given; its clock is compared with ours."""
    with running(Profile(api_key="secret")) as simulator:
        without, _ = asyncio.run(ask_server(simulator.url, "", insecure=False))
        with_key, skew = asyncio.run(ask_server(simulator.url, "secret", insecure=False))
    assert set((without.statuses or {"": 401}).values()) == {401}
    assert with_key.identity and with_key.identity.model
    paths = (
        "/generate",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/responses",
    )
    found = with_key.statuses or {}
    assert [found[path] for path in paths] == [200] * 5
    # One route of each API, and none that is answered whatever the model is.
    assert {"/v1/embeddings", "/v1/rerank"} < found.keys()
    assert not any("token" in path or "?" in path for path in found)
    assert skew is not None and abs(skew) < 600


def test_nobody() -> None:
    """Of a server that is not there, it is told why it cannot be reached."""
    server, skew = asyncio.run(ask_server(f"http://127.0.0.1:{free_port()}", "", insecure=False))
    assert (server.verdict, server.identity, skew) == (Verdict.DOWN, None, None)
    assert "refused" in server.failure.lower()


def test_certificate(tmp_path: Path) -> None:
    """So it is with a certificate that nobody vouches for; `insecure` takes it."""
    with replaying(self_signed(tmp_path)) as replayer:
        (replayer.pair,) = corpus("generate-n1")
        url = replayer.url.replace("http:", "https:")
        server, _ = asyncio.run(ask_server(url, "", insecure=False))
        assert server.verdict is Verdict.DOWN and "CERTIFICATE" in server.failure
        server, _ = asyncio.run(ask_server(url, "", insecure=True))
        assert server.verdict is Verdict.KNOWN

"""What the doctor asks other servers; Redis is asked in `test_doctor`."""

from __future__ import annotations

import asyncio

from sglang_cached_addon.cli.server_checkup import ask_server
from sglang_cached_addon.upstream.asking import Verdict
from tests.redis import free_port
from tests.simulator import Profile, running


def test_keys() -> None:
    """A server that wants a key is shown the one that is given; its clock is compared with ours."""
    with running(Profile(api_key="secret")) as simulator:
        without, _ = asyncio.run(ask_server(simulator.url, "", insecure=False))
        with_key, skew = asyncio.run(ask_server(simulator.url, "secret", insecure=False))
    assert set((without.statuses or {"": 401}).values()) == {401}
    assert with_key.identity and with_key.identity.model
    assert with_key.statuses == {
        "/generate": 200, "/v1/completions": 200, "/v1/chat/completions": 200,
    }  # fmt: skip
    assert skew is not None and abs(skew) < 600


def test_nobody() -> None:
    """A server that is not there has said nothing."""
    server, skew = asyncio.run(ask_server(f"http://127.0.0.1:{free_port()}", "", insecure=False))
    assert (server.verdict, server.identity, skew) == (Verdict.DOWN, None, None)

"""What is read of mitmproxy's requests."""

from __future__ import annotations

from mitmproxy.http import Headers
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import tflow, tutils

from sglang_cached_addon.core import policy
from sglang_cached_addon.proxy.requests import is_abort, is_from_here, is_short, length


def flow(path: str = "/", method: str = "POST", peer: str = "127.0.0.1", **headers: str):
    request = tutils.treq(method=method.encode(), path=path.encode(), headers=Headers(**headers))
    made = tflow.tflow(req=request)
    made.client_conn.peername = (peer, 1)
    return made


def test_aborts() -> None:
    """Only SGLang's own routes end calls."""
    for path, method, found in (
        ("/abort_request", "POST", True),
        ("/pause_generation", "POST", True),
        ("/abort_request", "GET", False),
        ("/abort_request/x", "POST", False),
    ):
        assert is_abort(flow(path, method).request) is found, (path, method)


def test_length() -> None:
    """A length that is none counts as nothing; a body in chunks may have any length."""
    large = str(policy.MAX_NAMES + 1)
    for headers, wanted, short in (
        ({}, 0, True),
        ({"content_length": "12"}, 12, True),
        ({"content_length": "-1"}, 0, True),
        ({"content_length": "9" * 20}, 0, True),
        ({"content_length": large}, int(large), False),
        ({"transfer_encoding": "chunked"}, 0, False),
    ):
        request = flow(**headers).request
        assert (length(request), is_short(request)) == (wanted, short), headers


def test_from_here() -> None:
    """Loopback in all its forms is here, unless another proxy says that it has sent it on."""
    for peer, headers, found in (
        ("127.0.0.1", {}, True),
        ("127.9.9.9", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("fe80::1%eth0", {}, False),
        ("10.0.0.1", {}, False),
        ("127.0.0.1", {"via": "1.1 x"}, False),
        ("127.0.0.1", {"x_forwarded_for": "10.0.0.1"}, False),
    ):
        assert is_from_here(flow(peer=peer, **headers)) is found, (peer, headers)


def test_the_address_that_it_listens_on() -> None:
    """Who comes from the very address that the proxy is reached at is here, but not where packets
    come out of a tunnel, whose addresses anybody may have written."""
    for peer, own, mode, found in (
        ("10.0.0.7", "10.0.0.7", "reverse:http://sglang", True),
        ("fe80::7%eth0", "fe80::7%eth0", "reverse:http://sglang", True),
        ("10.0.0.8", "10.0.0.7", "reverse:http://sglang", False),
        ("10.0.0.7", "", "reverse:http://sglang", False),
        ("10.0.0.7", "10.0.0.7", "reverse:https://sglang", True),
        ("10.0.0.7", "10.0.0.7", "wireguard", False),
        ("10.0.0.7", "10.0.0.7", "transparent", False),
    ):
        made = flow(peer=peer)
        made.client_conn.sockname = (own, 30001)
        made.client_conn.proxy_mode = ProxyMode.parse(mode)
        assert is_from_here(made) is found, (peer, own, mode)
    made = flow(peer="10.0.0.7")
    made.client_conn.sockname = ("10.0.0.7", 30001)
    made.client_conn.proxy_mode = ProxyMode.parse("reverse:http3://sglang")
    made.client_conn.transport_protocol = "udp"
    assert not is_from_here(made)

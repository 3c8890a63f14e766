"""The server that mitmproxy's options name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_cached_addon.assembly import Target
from sglang_cached_addon.proxy.target import target_of


def target(*modes: str, **others: Any) -> Target:
    usual = {"client_certs": None, "ssl_insecure": False, "ssl_verify_upstream_trusted_ca": None}
    options = {"mode": modes, "keep_host_header": False, **usual, **others}
    return target_of(SimpleNamespace(**options))


def test_url() -> None:
    """The URL has its port, and an address of IPv6 its brackets; TLS is for https alone."""
    for mode, url in (
        ("reverse:http://localhost", "http://localhost:80"),
        ("reverse:http://10.0.0.1:30000@9000", "http://10.0.0.1:30000"),
        ("reverse:http://[::1]:30000", "http://[::1]:30000"),
        ("reverse:https://example.org", "https://example.org:443"),
    ):
        found = target(mode)
        assert (found.url, found.tls is not None) == (url, mode.startswith("reverse:https"))
    assert target("reverse:http://localhost", keep_host_header=True).keeps_host


def test_mistakes(tmp_path: Path) -> None:
    """Without exactly one upstream, or with certificates that cannot be read, it says why."""
    https = "reverse:https://localhost"
    for modes, others, words in (
        (["regular"], {}, "exactly one upstream"),
        ([https, "reverse:http://localhost:1@9000"], {}, "exactly one upstream"),
        ([https], {"client_certs": str(tmp_path)}, "client_certs: must name a file"),
        ([https], {"client_certs": str(tmp_path / "none")}, "TLS to the upstream cannot"),
        ([https], {"ssl_verify_upstream_trusted_ca": "none"}, "TLS to the upstream cannot"),
    ):
        with pytest.raises(ValueError, match=words):
            target(*modes, **others)

"""The server behind, as mitmproxy's options name it: its URL, and how TLS is spoken to it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode

from sglang_cached_addon.assembly import Target
from sglang_cached_addon.wire.tls import tls_context


def target_of(options: Any) -> Target:
    """The one server that mitmproxy is set up for; raises ValueError."""
    modes = [ProxyMode.parse(mode) for mode in options.mode]
    if len(modes) != 1 or not isinstance(modes[0], ReverseMode):
        raise ValueError("needs exactly one upstream: --mode reverse:http://HOST:PORT")
    scheme, (host, port, *_) = modes[0].scheme, modes[0].address
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    return Target(url, _tls(options) if scheme == "https" else None, options.keep_host_header)


def _tls(options: Any) -> ssl.SSLContext:
    certificate = options.client_certs
    if certificate and Path(certificate).expanduser().is_dir():
        raise ValueError("client_certs: must name a file, as there is one upstream")
    try:
        return tls_context(
            insecure=options.ssl_insecure,
            authorities=options.ssl_verify_upstream_trusted_ca,
            certificate=str(Path(certificate).expanduser()) if certificate else None,
        )
    except OSError as e:
        raise ValueError(f"TLS to the upstream cannot be set up: {e}") from e

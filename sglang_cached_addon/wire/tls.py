"""How TLS is spoken to upstream."""

from __future__ import annotations

import ssl


def tls_context(
    *, insecure: bool = False, authorities: str | None = None, certificate: str | None = None
) -> ssl.SSLContext:
    """How TLS is spoken. `insecure`: the server's certificate is not checked; `authorities` is a
    file of those that are trusted instead of the system's, `certificate` one with the client's
    own and its key. Raises `OSError` where one cannot be read."""
    context = ssl.create_default_context(cafile=authorities)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate)
    return context

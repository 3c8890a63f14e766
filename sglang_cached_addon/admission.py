"""Who may ask: credentials that the upstream has accepted.

Pure: times are arguments, in seconds of one clock that never goes back. An upstream with a
key would be opened by a cache that answers hits to anybody, so a credential is shown to
upstream first, and its answer counts for a while. Only digests of credentials are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

CREDENTIAL_FIELDS = (b"authorization", b"x-api-key", b"api-key", b"cookie")
"""The header fields by which servers, and what stands before them, know a client: SGLang and
OpenAI's API, Anthropic's, Azure's, and gateways with a login. `proxy-authorization` is meant
for the next proxy, which is this one (RFC 9110 §11.7.2): it says nothing to upstream."""


def credential(headers: Mapping[bytes, bytes]) -> bytes:
    """What a request identifies its sender by: a 32-byte digest, or `b""` where it carries
    nothing of the kind. Header names are lower-case.

    Two spellings of one key are two credentials: each is shown to upstream for itself.
    """
    shown = credential_headers(headers)
    if not shown:
        return b""
    sha = hashlib.sha256()
    for field in shown:
        for part in field:
            sha.update(b"%d:%b" % (len(part), part))
    return sha.digest()


def credential_headers(headers: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """The fields of a request's credential, to ask upstream something on the client's behalf."""
    return tuple((name, headers[name]) for name in CREDENTIAL_FIELDS if name in headers)


class Admission:
    """Who is answered from the store without asking upstream first."""

    __slots__ = ("_accepted", "_limit", "_seconds", "is_open")

    def __init__(self, seconds: float = 60.0, limit: int = 10_000) -> None:
        """An acceptance counts for `seconds`; up to `limit` of them are remembered."""
        self._seconds = seconds
        self._limit = limit
        self._accepted: dict[bytes, float] = {}
        """Credential to the time of its last acceptance, in the order of these times."""
        self.is_open: bool | None = None
        """Upstream asks for no key, so everybody may ask. None: not known yet."""

    def accept(self, credential: bytes, now: float) -> None:
        """Upstream answered a request with this credential as it does for those it knows."""
        self._accepted.pop(credential, None)
        self._accepted[credential] = now
        if len(self._accepted) > self._limit:
            del self._accepted[next(iter(self._accepted))]

    def forget(self, credential: bytes) -> None:
        """Upstream said 401 or 403 to this credential."""
        self._accepted.pop(credential, None)

    def forget_all(self) -> None:
        """Another process may answer now, which knows other keys, or none."""
        self._accepted.clear()
        self.is_open = None

    def admits(self, credential: bytes, now: float, *, is_down: bool = False) -> bool:
        """Whether a request with this credential may be answered from the store.

        While upstream is down it can neither accept nor refuse: an acceptance then counts
        however old it is.
        """
        if self.is_open:
            return True
        accepted = self._accepted.get(credential)
        return accepted is not None and (is_down or now - accepted <= self._seconds)

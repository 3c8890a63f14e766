"""Who may be answered from the store: what upstream has said to whom.

Pure: times are arguments, in seconds of one clock that never goes back. An upstream with a key
would be opened by a cache that answers hits to anybody. So a hit is only for an asker that
upstream has answered with a 200 lately, on the same route and for the same model; an asker
without a credential is no exception. Anything else than a 200 means that nothing is known, and
what is not known is closed. Only digests of credentials are kept here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from heapq import nlargest
from math import inf
from typing import NamedTuple

CREDENTIAL_FIELDS = (
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-auth-token",
    b"x-goog-api-key",
    b"ocp-apim-subscription-key",
)
"""The header fields by which servers, and gateways before them, know a client: SGLang and OpenAI's
API, Anthropic's, Azure's, OpenStack's, Google's. `proxy-authorization` is meant for the next proxy,
which is this one (RFC 9110 §11.7.2): it says nothing to upstream. Cookies are none, as those of a
load balancer change with each answer; `--credential-header cookie` makes them one."""

ACCEPTED_SECONDS = 60.0
"""For how many seconds an acceptance counts."""

SLOW_SECONDS = 300.0
"""For how many seconds it counts while upstream is slow to say whether it still holds."""

RENEW_SECONDS = 30.0
"""The age in seconds at which an acceptance is renewed beside the calls, so that none waits."""

PAUSE_SECONDS = 600.0
"""For how many seconds after its last call an asker's acceptance is renewed."""

MAX_ASKERS = 10_000
"""How many acceptances are remembered. The oldest is forgotten first."""

MAX_RENEWED = 64
"""How many askers have their acceptances renewed: those that asked last."""


class Probe(NamedTuple):
    """The smallest call of an API, whose answer tells whether an asker may generate."""

    body: bytes
    fields: tuple[tuple[bytes, bytes], ...] = ()
    """The header fields that a call of this API has, whoever makes it."""


class Asker(NamedTuple):
    """Who asks, and what for."""

    credential: bytes
    """As `credential` gives it; empty for a client that shows none."""
    method: str
    path: str
    model: str | None
    """The model that the call names; empty where it names none. None where the call was not read,
    so that it is not known for which model the asker was accepted."""
    routing: bytes = b""
    """As `KeyHeaders.digest`. By these headers gateways choose a server, and know who may ask
    it."""


def credential(
    headers: Mapping[bytes, bytes], names: Collection[bytes] = CREDENTIAL_FIELDS
) -> bytes:
    """What a request identifies its sender by: a 32-byte digest, or `b""` where it carries
    nothing of the kind. Header names are lower-case.

    Two spellings of one key are two credentials: each is shown to upstream for itself.
    """
    return fields_digest(credential_headers(headers, names))


def fields_digest(fields: Collection[tuple[bytes, bytes]], begun: bytes = b"") -> bytes:
    """32 bytes that name header fields; empty where there are none. `begun` tells what they are
    from what other digests are of."""
    if not fields:
        return b""
    sha = hashlib.sha256(begun)
    for field in fields:
        for part in field:
            sha.update(b"%d:%b" % (len(part), part))
    return sha.digest()


def credential_headers(
    headers: Mapping[bytes, bytes], names: Collection[bytes] = CREDENTIAL_FIELDS
) -> tuple[tuple[bytes, bytes], ...]:
    """The fields of a request's credential, to ask upstream something on the client's behalf."""
    return tuple((name, headers[name]) for name in names if name in headers)


class _Acceptance:
    """When an asker was accepted, and when it last asked."""

    __slots__ = ("accepted_at", "used_at")

    def __init__(self, now: float) -> None:
        self.accepted_at = now
        self.used_at = now


class Admission:
    """The askers that are answered from the store without asking upstream first."""

    def __init__(self, limit: int = MAX_ASKERS) -> None:
        self._limit = limit
        self._accepted: dict[Asker, _Acceptance] = {}
        """The accepted askers, in the order in which they were accepted."""
        self._by_credential: dict[bytes, set[Asker]] = {}
        """The accepted askers that show each credential."""
        self._renewing: set[Asker] = set()
        """The askers that upstream was asked about and has not answered yet."""

    def accept(self, asker: Asker, now: float) -> None:
        """Notes that upstream has answered this asker with a 200."""
        found = self._accepted.pop(asker, None) or _Acceptance(now)
        found.accepted_at = now
        self._accepted[asker] = found
        self._by_credential.setdefault(asker.credential, set()).add(asker)
        if len(self._accepted) > self._limit:
            self._forget(next(iter(self._accepted)))

    def recall(self, asker: Asker) -> None:
        """Notes that upstream accepted this asker in an earlier process, which counts while
        upstream is down."""
        self.accept(asker, -inf)

    def refuse(self, asker: Asker, status: int) -> None:
        """Notes that upstream has refused this asker. A 401 refuses the credential whatever it asks
        for, a 403 only for this route and model."""
        is_all = status == 401 and (asker.credential or not asker.routing)
        refused = self._by_credential.get(asker.credential, ()) if is_all else (asker,)
        for one in tuple(refused):
            self._forget(one)

    def _forget(self, asker: Asker) -> None:
        if self._accepted.pop(asker, None):
            askers = self._by_credential[asker.credential]
            askers.discard(asker)
            if not askers:
                del self._by_credential[asker.credential]

    def forget_all(self) -> None:
        """Forgets all acceptances: another process may answer now, which knows other keys, or
        none."""
        self._accepted.clear()
        self._by_credential.clear()

    def admits(self, asker: Asker, now: float, *, is_down: bool = False) -> bool:
        """Whether a request of this asker may be answered from the store.

        While upstream cannot be reached it can neither accept nor refuse: an acceptance then
        counts however old it is, and what is open to everybody is open to a new credential, too.
        """
        found = self._accepted.get(asker)
        if found is None:
            return is_down and asker.credential != b"" and asker._replace(credential=b"") in self
        found.used_at = now
        age = now - found.accepted_at
        if age <= ACCEPTED_SECONDS or is_down:
            return True
        return age <= SLOW_SECONDS and asker in self._renewing

    def due(self, now: float) -> list[Asker]:
        """The askers whose acceptance is to be renewed now."""
        used = (
            (found.used_at, asker)
            for asker, found in self._accepted.items()
            if now - found.used_at <= PAUSE_SECONDS
        )
        return [
            asker
            for _, asker in nlargest(MAX_RENEWED, used)
            if asker not in self._renewing
            and now - self._accepted[asker].accepted_at >= RENEW_SECONDS
        ]

    def renewing(self, asker: Asker, *, is_asked: bool) -> None:
        """Notes that upstream is asked about this asker, or that it is not any more."""
        if is_asked:
            self._renewing.add(asker)
        else:
            self._renewing.discard(asker)

    def __contains__(self, asker: Asker) -> bool:
        """Whether an asker was accepted, however long ago."""
        return asker in self._accepted

    @property
    def open(self) -> frozenset[Asker]:
        """The accepted askers without a credential: what they may ask is open to everybody."""
        askers = self._by_credential.get(b"", ())
        return frozenset(asker for asker in askers if not asker.routing)

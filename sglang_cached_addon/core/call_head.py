"""What the header fields of a call say to the cache: who asks, by which route, on what terms.

Pure. A `CallHead` keeps digests only, no credential in clear, so that it may be remembered for
the next request with the same header fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sglang_cached_addon.core import admission, directives, refusals, request_ids, runs
from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.directives import Directives
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.routing import KeyHeaders

Fields = tuple[tuple[bytes, bytes], ...]
"""Header fields in their order."""


@dataclass(frozen=True, slots=True)
class CallHead:
    """What is to be known of a call beside its body."""

    method: str
    path: str
    directives: Directives = directives.DEFAULT
    refusal: Reason | None = None
    """Why a call with these header fields is not looked up."""
    credential: bytes = b""
    """A digest of the header fields by which the client shows who it is; empty without them."""
    routing: bytes = b""
    """A digest of the header fields by which a gateway chooses a model; empty without them."""
    versions: bytes = b""
    """A digest of the header fields by which it says which version of an API it means; empty
    without them."""
    tenant: bytes = b""
    """What is part of the call's keys beside its body: digests of header fields."""
    run: str = ""
    """The run that the call belongs to; empty where it belongs to none."""
    is_relayed: bool = False
    """A proxy has sent it on: who is behind it is not who is connected."""
    request_id: bytes = b""
    """The id that the client has given it; empty without a sane one."""

    def asker(self, model: str | None) -> Asker:
        """Who asks for that model, as upstream tells clients apart."""
        return Asker(self.credential, self.method, self.path, model, self.routing)


class CallHeads:
    """Reads the header fields of calls."""

    def __init__(
        self,
        key_headers: KeyHeaders | None = None,
        credential_fields: Collection[bytes] = admission.CREDENTIAL_FIELDS,
        run: str = "",
        *,
        isolates: bool = False,
    ) -> None:
        """`key_headers` are part of each key; a credential is made of `credential_fields`, which
        are lower-case names; `run` is the run of calls that name none. With `isolates`, each
        credential has a cache of its own."""
        self.key_headers = key_headers or KeyHeaders()
        self.credential_fields = credential_fields
        self._run = run
        self._isolates = isolates

    def read(
        self, method: str, path: str, headers: Mapping[bytes, bytes], run: str = ""
    ) -> CallHead:
        """What header fields say; `run` is the run that stood in the path. Names of fields are
        lower-case."""
        named = headers.get(runs.HEADER)
        credential = admission.credential(headers, self.credential_fields)
        routing, versions = self.key_headers.digest(headers), self.key_headers.versions(headers)
        return CallHead(
            method,
            path,
            directives.parse(headers),
            refusals.lookup_refusal(headers),
            credential,
            routing,
            versions,
            (credential if self._isolates else b"") + routing + versions,
            named.decode("latin-1") if named is not None else run or self._run,
            is_relayed(headers),
            request_ids.of_client(headers),
        )

    def credential_headers(self, headers: Mapping[bytes, bytes]) -> Fields:
        """The fields by which the client shows who it is."""
        return admission.credential_headers(headers, self.credential_fields)

    def routing_headers(self, headers: Mapping[bytes, bytes]) -> Fields:
        """The fields by which a gateway chooses a model, but for those of the credential."""
        fields = self.key_headers.fields(headers)
        return tuple(field for field in fields if field[0] not in self.credential_fields)


def by_name(fields: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Header fields by their lower-case names; values of one name are joined (RFC 9110 §5.3)."""
    headers: dict[bytes, bytes] = {}
    for name, value in fields:
        name = name.lower()
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def is_relayed(names: Iterable[bytes]) -> bool:
    """Whether header fields, by their names in lower case, say that a proxy has sent a request on:
    who is behind it is not who is connected."""
    return any(name in _RELAYED or name.startswith(b"x-forwarded-") for name in names)


_RELAYED = frozenset(
    (
        b"cf-connecting-ip",
        b"fastly-client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-original-forwarded-for",
        b"x-real-ip",
    )
)

"""What the header fields of a call say to the cache."""

from __future__ import annotations

from sglang_cached_addon.core.call_head import CallHeads, by_name, is_relayed
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.routing import KeyHeaders

JSON = {b"content-type": b"application/json"}


def test_read() -> None:
    """Each part of a head comes from the fields that say it, and no credential is kept in clear."""
    heads = CallHeads(KeyHeaders(["x-pool"]), [b"x-key"])
    plain = heads.read("POST", "/generate", JSON)
    assert (plain.method, plain.path) == ("POST", "/generate")
    assert plain.directives.is_default
    assert (plain.refusal, plain.credential, plain.routing, plain.is_relayed) == (
        None, b"", b"", False
    )  # fmt: skip
    headers = {
        **JSON,
        b"x-key": b"s3cret",
        b"x-pool": b"a",
        b"cache-control": b"no-cache",
        b"via": b"1.1 x",
    }
    full = heads.read("POST", "/generate", headers)
    assert full.directives.no_cache
    assert full.is_relayed
    assert len(full.credential) == len(full.routing) == 32
    assert b"s3cret" not in repr(full).encode()
    assert heads.credential_headers(headers) == ((b"x-key", b"s3cret"),)
    assert heads.routing_headers(headers) == ((b"x-pool", b"a"),)
    assert heads.read("POST", "/generate", {}).refusal is Reason.CONTENT_TYPE


def test_asker() -> None:
    """Clients are told apart by credential, route, model and gateway headers."""
    heads = CallHeads(KeyHeaders(["x-pool"]))
    variants = (
        ("POST", "/generate", JSON, "m"),
        ("PUT", "/generate", JSON, "m"),
        ("POST", "/v1/completions", JSON, "m"),
        ("POST", "/generate", {**JSON, b"authorization": b"a"}, "m"),
        ("POST", "/generate", {**JSON, b"x-pool": b"a"}, "m"),
        ("POST", "/generate", JSON, "n"),
        ("POST", "/generate", JSON, None),
    )
    askers = {heads.read(method, path, fields).asker(model)
              for method, path, fields, model in variants}  # fmt: skip
    assert len(askers) == len(variants)


def test_a_credential_that_routes() -> None:
    """A field that is both a credential and in the key is shown to upstream once."""
    heads = CallHeads(KeyHeaders(["authorization"]))
    headers = {**JSON, b"authorization": b"a"}
    assert heads.credential_headers(headers) == ((b"authorization", b"a"),)
    assert heads.routing_headers(headers) == ()


def test_by_name() -> None:
    """Names are compared in lower case, and the values of one name are a list."""
    fields = ((b"A", b"1"), (b"b", b"2"), (b"a", b"3"))
    assert by_name(fields) == {b"a": b"1, 3", b"b": b"2"}


def test_is_relayed() -> None:
    """Whoever is behind a proxy on this machine is not taken for somebody on it."""
    relayed = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")
    for name in (*relayed, b"cf-connecting-ip"):
        assert is_relayed([b"accept", name]), name
    assert not is_relayed([b"accept", b"x-forwarded", b"host", b"authorization"])

"""Which headers are part of a key."""

from __future__ import annotations

import hashlib

import pytest

from sglang_cached_addon.core.routing import KeyHeaders
from tests.tables import each

IN = [
    b"x-portkey-provider", b"x-portkey-config", b"x-portkey-virtual-key", b"x-portkey-metadata",
    b"x-ai-eg-model", b"cf-aig-custom-cost", b"helicone-target-url", b"helicone-fallbacks",
    b"x-litellm-tags", b"x-model-id", b"x-gateway-model-name", b"x-gateway-model-name-rewrite",
    b"serve_multiplexed_model_id", b"x-label-selector", b"x-amzn-sagemaker-target-model",
    b"azureml-model-deployment", b"openai-beta",
]  # fmt: skip
OUT = [
    b"x-portkey-trace-id", b"x-portkey-span-id", b"x-portkey-parent-span-id",
    b"x-portkey-span-name", b"x-portkey-request-timeout", b"helicone-request-id",
    b"helicone-session-id", b"helicone-session-path", b"helicone-user-id", b"cf-aig-event-id",
    b"cf-aig-collect-log", b"x-litellm-trace-id", b"x-litellm-call-id",
    b"x-amzn-sagemaker-inference-id", b"traceparent", b"x-request-id", b"x-smg-routing-key",
    b"user-agent", b"host", b"content-length", b"x-portkey", b"authorization",
]  # fmt: skip


@each("name", IN)
def test_in(name: bytes) -> None:
    """Headers that choose who answers are part of the key."""
    headers = KeyHeaders()
    found = {headers.digest({b"host": b"a", name: value}) for value in (b"", b"a", b"b", b"ab")}
    assert len(found) == 4
    assert {len(digest) for digest in found} == {32}


@each("name", OUT)
def test_out(name: bytes) -> None:
    """Headers that name one request are not part of the key."""
    assert KeyHeaders().digest({name: b"1"}) == b""


@each("name", [b"anthropic-beta", b"anthropic-version"])
def test_versions(name: bytes) -> None:
    """Headers that say which version of an API is meant are part of the key, and choose nobody,
    unless they are named in the settings as such that do."""
    headers, named = KeyHeaders(), KeyHeaders([name.decode()])
    found = {headers.versions({b"host": b"a", name: value}) for value in (b"", b"a", b"b")}
    assert len(found) == 3
    assert headers.versions({b"host": b"a"}) == headers.digest({name: b"1"}) == b""
    assert named.versions({name: b"1"}) == b"" != named.digest({name: b"1"})


def test_named() -> None:
    """Headers that are named in the settings are part of the key, whatever they are."""
    headers = KeyHeaders(["X-Team", "x-request-id", "x-team"])
    assert headers.named == ["x-request-id", "x-team"]
    assert headers.digest({b"x-team": b"1"}) != headers.digest({b"x-team": b"2"}) != b""
    assert headers.digest({b"x-request-id": b"1"})
    assert headers.digest({b"x-other": b"1"}) == b""


def test_parts_do_not_run_into_each_other() -> None:
    """Names and values do not run into each other, and their order does not matter."""
    headers = KeyHeaders(["a", "ab", "c"])
    assert headers.digest({b"a": b"bc"}) != headers.digest({b"ab": b"c"})
    assert headers.digest({b"a": b"1", b"c": b"2"}) == headers.digest({b"c": b"2", b"a": b"1"})
    assert headers.digest({b"a": b"1", b"c": b""}) != headers.digest({b"a": b"1"})


@each("name", ["", "a b", "a:", "ä", "x-team\n", "(x)"])
def test_no_name(name: str) -> None:
    """What is not a name of a header is refused."""
    with pytest.raises(ValueError, match="is no name of a header"):
        KeyHeaders([name])


def test_digests_do_not_change() -> None:
    """Equal headers have one digest for ever, as it is part of keys."""
    digest = KeyHeaders().digest({b"x-portkey-config": b"c", b"x-model": b"m", b"host": b"h"})
    assert digest == hashlib.sha256(b"headers7:x-model1:m16:x-portkey-config1:c").digest()

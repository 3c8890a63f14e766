"""Headers that say who is to answer, by which gateways choose a model or a provider, and in which
version of an API.

Pure. What they say goes into the key, beside the body: two calls that differ in one of them are
two calls. What names one request, or what it belongs to, does not. Header names are lower-case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sglang_cached_addon.core.admission import CREDENTIAL_FIELDS, fields_digest

PREFIXES = (
    b"x-portkey-",
    b"x-ai-eg-",  # Envoy AI Gateway
    b"cf-aig-",  # Cloudflare AI Gateway
    b"helicone-",
    b"x-litellm-",
    b"x-bf-",  # Bifrost
    b"x-tfy-",  # TrueFoundry
    b"x-higress-llm-",
    b"x-gateway-model-name",  # Kubernetes' Gateway API, with and without `-rewrite`
    b"x-amzn-sagemaker-",
)

NAMES = frozenset(
    {
        b"x-model-id",  # SGLang's gateway
        b"x-smg-target-worker",
        b"x-selected-model",  # vLLM's semantic router
        b"x-vsr-selected-model",
        b"serve_multiplexed_model_id",  # Ray Serve
        b"x-label-selector",  # KubeAI
        b"x-provider",
        b"x-model",
        b"x-bt-endpoint-name",  # Braintrust
        b"azureml-model-deployment",
        b"x-ms-model-mesh-model-name",
        b"extra-parameters",
        b"openai-beta",
    }
)

VERSIONS = (b"anthropic-beta", b"anthropic-version")
"""Headers that say how an API is meant, and nothing of who is to answer, or who may ask."""

_OF_ONE_REQUEST = re.compile(
    rb".*-((trace|span|request|session|event|call|log|inference|user)-?id"
    rb"|(session|span)-(name|path)|collect-log|timeout)"
)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""RFC 9110 §5.6.2."""


class KeyHeaders:
    """The headers of a request that are part of its key."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """`names` are more of them; raises ValueError for what is no name of a header."""
        self.named = sorted({name.lower() for name in names})
        for name in self.named:
            if not _TOKEN.fullmatch(name):
                raise ValueError(f"{name}: is no name of a header")
        self._names = NAMES | {name.encode() for name in self.named}

    @classmethod
    def of(cls, text: str) -> KeyHeaders:
        """Those that a text names, with commas between. Raises ValueError as above."""
        return cls(name.strip() for name in text.split(",") if name.strip())

    def has(self, name: bytes) -> bool:
        if name in self._names:
            return True
        return name.startswith(PREFIXES) and not _OF_ONE_REQUEST.fullmatch(name)

    def fields(self, headers: Mapping[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
        """Those of a request's headers that say who is to answer."""
        return tuple((name, headers[name]) for name in sorted(headers) if self.has(name))

    def digest(self, headers: Mapping[bytes, bytes]) -> bytes:
        """32 bytes that name what a request's headers say of who is to answer. Empty where they say
        nothing of it, as in nearly all requests."""
        return fields_digest(self.fields(headers), b"headers")

    def versions(self, headers: Mapping[bytes, bytes]) -> bytes:
        """As `digest`, of what they say of the version of the API."""
        fields = tuple(
            (name, headers[name]) for name in VERSIONS if name in headers and not self.has(name)
        )
        return fields_digest(fields, b"versions")


def credential_fields(text: str) -> tuple[bytes, ...]:
    """The names, in lower case, of the header fields by which upstream knows clients: of those that
    users name, with commas between, and of the usual ones. Raises ValueError as `KeyHeaders.of`."""
    names = (name.encode() for name in KeyHeaders.of(text).named)
    return tuple(dict.fromkeys((*CREDENTIAL_FIELDS, *names)))

"""What a client asks of the cache: request directives, RFC 9111 §5.2.1.

Pure: reads a head. `X-Cache-Control` counts like `Cache-Control`, for clients whose library
writes the latter itself; where the two differ, the stricter one holds. Nothing here raises:
what cannot be read is unknown and ignored, but a `max-age` that cannot be read is 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FIELDS = (b"cache-control", b"x-cache-control")

_LONGEST = 2**31
"""The largest number of seconds; a larger one counts as this (RFC 9111 §1.2.2)."""


@dataclass(frozen=True, slots=True)
class Directives:
    """The directives of a request, as far as they mean something here."""

    no_store: bool = False
    """Nothing of the exchange is stored, nor answered from the store."""
    no_cache: bool = False
    """Stored samples do not count: upstream is asked."""
    max_age: int | None = None
    """The age in seconds above which stored samples do not count. None where any age will do."""
    only_if_cached: bool = False
    """Upstream may not be asked."""

    @property
    def is_default(self) -> bool:
        """The client asks for nothing special."""
        return self is DEFAULT or self == DEFAULT


DEFAULT = Directives()
"""Of a request that asks for nothing special."""

# Commas part the members, but not inside a quoted string (RFC 9110 §5.6.4). One that is never
# closed goes to the end. The alternatives begin differently, so this takes linear time.
_MEMBER = re.compile(rb'(?:"(?:[^"\\]|\\.)*"?|[^",])+', re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)


def parse(headers: Mapping[bytes, bytes]) -> Directives:
    """The directives of a request with this head. Header names are lower-case."""
    values = [headers[name] for name in _FIELDS if name in headers]
    if not values:
        return DEFAULT
    # The names are case-insensitive, and so is the one argument that is read.
    members = [m.lower().partition(b"=") for m in _MEMBER.findall(b",".join(values))]
    asked = {name.strip() for name, _, _ in members}
    ages = [_seconds(argument) for name, _, argument in members if name.strip() == b"max-age"]
    return Directives(
        no_store=b"no-store" in asked,
        no_cache=b"no-cache" in asked,
        max_age=min(ages, default=None),
        only_if_cached=b"only-if-cached" in asked,
    )


def _seconds(argument: bytes) -> int:
    """An argument of `max-age`, quoted or not; 0 where it is no number (RFC 9111 §4.2.1 would
    have such an answer considered stale)."""
    text = argument.strip()
    if len(text) > 1 and text[:1] == text[-1:] == b'"':
        text = _QUOTED_PAIR.sub(rb"\1", text[1:-1])
    if not text.isdigit():
        return 0
    digits = text.lstrip(b"0") or b"0"
    # Python refuses to read a number of thousands of digits.
    return min(int(digits), _LONGEST) if len(digits) <= len(str(_LONGEST)) else _LONGEST

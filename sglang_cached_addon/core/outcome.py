"""What became of a request, and how people see it: headers, a log line, counters.

Pure values and sums; no clock, no I/O. Header fields: RFC 9211 (Cache-Status), RFC 9111
§5.1 (Age).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.policy import Reason

SHOWN = 16
"""How many bytes of a key people see: the first 8 name the model, and 8 more the call. The journal
has all of it."""


def hit_status(key: bytes, detail: str = "") -> bytes:
    """The value of `Cache-Status` for a hit; `key` and `detail` are as in `Outcome`."""
    status = b'sglang-cached; hit; key="%b"' % key[:SHOWN].hex().encode() if key else _HIT
    return b'%b; detail="%b"' % (status, detail.encode()) if detail else status


_HIT = b"sglang-cached; hit"


class Kind(StrEnum):
    """What became of a request; each has one of these."""

    HIT = "hit"
    PARTIAL = "partial"
    MISS = "miss"
    COLLAPSED = "collapsed"
    BYPASS = "bypass"
    DENIED = "denied"

    __hash__ = str.__hash__  # that of enums is called for each request, and slow


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    kind: Kind
    have: int = 0
    """How many samples of the answer were stored."""
    want: int = 0
    """How many samples the whole answer has."""
    reason: Reason | None = None
    """Why the request was not looked up, or why its answer was not stored."""
    status: int = 200
    """The status of upstream's answer, where upstream was asked."""
    oldest: float = 0.0
    """When the oldest sample of a hit was stored: Unix seconds."""
    is_open: bool = False
    """The answer is still on its way, so that it is not known yet whether it will be stored."""
    key: bytes = b""
    """The key of the pool, where the call has just one."""
    places: bytes = b""
    """Which samples of its pools the answer holds, as `X-Cache-Sample` has it."""
    detail: str = ""
    """What else is to be said of it."""

    @property
    def cache_status(self) -> str:
        """The value of `Cache-Status`."""
        if self.kind is Kind.HIT:
            return hit_status(self.key, self.detail).decode()
        parts = ["sglang-cached"]
        detail = [str(self.reason)] if self.reason else []
        if self.kind is Kind.DENIED:
            pass  # it was not forwarded
        elif self.kind is Kind.COLLAPSED:
            parts += [f"fwd={Kind.MISS}", "collapsed"]
        else:
            parts.append(f"fwd={self.kind}")
            if self.status != 200:
                parts.append(f"fwd-status={self.status}")
            if self.kind is not Kind.BYPASS and not self.reason and not self.is_open:
                parts.append("stored")
            if self.kind is Kind.PARTIAL:
                detail.insert(0, f"{self.have} of {self.want} stored")
        if self.key:
            parts.append(f'key="{self.key[:SHOWN].hex()}"')
        if self.detail:
            detail.append(self.detail)
        if detail:
            value = ", ".join(detail)
            is_name = detail == [self.reason]
            parts.append(f"detail={value}" if is_name else f'detail="{value}"')
        return "; ".join(parts)

    def age(self, now: float) -> int:
        """The age in seconds of a hit, at this Unix time."""
        return max(0, int(now - self.oldest))

    def headers(self, now: float) -> list[tuple[str, str]]:
        """The header fields that are added to the answer, at this Unix time."""
        fields = [("Cache-Status", self.cache_status), ("X-Cache", self.kind.upper())]
        if self.places:
            fields.append(("X-Cache-Sample", self.places.decode()))
        if self.kind is Kind.HIT:
            fields.append(("Age", str(self.age(now))))
        return fields

    def line(self, path: str, seconds: float) -> str:
        """The line of the log about the request."""
        text = f"[Cache {self.kind}] {path}"
        if self.want:
            text += f" {self.have}/{self.want}"
        text += f" {seconds * 1000:.1f} ms"
        detail = self.reason or self.detail
        return f"{text} ({detail})" if detail else text


@dataclass(frozen=True, slots=True)
class Saved:
    """What one answer saved by its stored samples."""

    samples: int = 0
    """How many samples came from the store."""
    tokens: int = 0
    """How many completion tokens they have."""
    seconds: float = 0.0
    """How many seconds the longest of the upstream calls took that they came from."""

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Saved:
        listed = list(samples)
        if len(listed) == 1:
            return cls(1, listed[0].tokens, listed[0].seconds)
        return cls(
            len(listed),
            sum(sample.tokens for sample in listed),
            max((sample.seconds for sample in listed), default=0.0),
        )


NOTHING = Saved()


@dataclass(slots=True)
class Counters:
    """Sums over all requests since the start; a clear of the cache does not reset them."""

    hits: int = 0
    misses: int = 0
    partial_hits: int = 0
    collapsed: int = 0
    """How many requests were answered by another request's fetch while it was under way."""
    denied: int = 0
    """How many requests were answered with 504, as they were not to go upstream."""
    bypasses: Counter[Reason] = field(default_factory=Counter)
    """How many requests were not looked up, by reason."""
    not_stored: Counter[Reason] = field(default_factory=Counter)
    """How many answers of misses and partial hits were not stored, by reason."""
    samples_from_cache: int = 0
    samples_from_upstream: int = 0
    """How many samples upstream generated, also those that no client waited for any more."""
    upstream_answers: Counter[int] = field(default_factory=Counter)
    """How many fetches upstream has answered, by status."""
    upstream_errors: Counter[Reason] = field(default_factory=Counter)
    """How many fetches came to no answer, by reason."""
    tokens_saved: int = 0
    """How many completion tokens the samples from the store have."""
    upstream_seconds_saved: float = 0.0
    """The sum, over all hits and collapsed requests, of the longest upstream call that their
    samples came from."""

    def hit(self, saved: Saved) -> None:
        """Counts a full hit."""
        self.hits += 1
        self.samples_from_cache += saved.samples
        self.tokens_saved += saved.tokens
        self.upstream_seconds_saved += saved.seconds

    def add(self, outcome: Outcome, saved: Saved = NOTHING) -> None:
        """Counts a request that was not a full hit, and what it saved by stored samples."""
        self.samples_from_cache += saved.samples
        self.tokens_saved += saved.tokens
        match outcome.kind:
            case Kind.BYPASS:
                self.bypasses[outcome.reason or Reason.ROUTE] += 1
                return
            case Kind.DENIED:
                self.denied += 1
                return
            case Kind.COLLAPSED:
                self.collapsed += 1
                self.upstream_seconds_saved += saved.seconds
                return
            case Kind.PARTIAL:
                self.partial_hits += 1
            case _:
                self.misses += 1
        if outcome.reason:
            self.not_stored[outcome.reason] += 1

    @property
    def hit_rate(self) -> float:
        """The share of hits among the requests that were not passed on, 0 to 1: how many were
        answered without waiting for upstream."""
        waited = self.misses + self.partial_hits + self.collapsed
        return _share(self.hits, waited + self.denied)

    @property
    def reuse_rate(self) -> float:
        """The share of samples that were not generated, 0 to 1."""
        return _share(self.samples_from_cache, self.samples_from_upstream)

    def as_json(self) -> dict[str, Any]:
        return {
            "hits": self.hits,
            "misses": self.misses,
            "partial_hits": self.partial_hits,
            "collapsed": self.collapsed,
            "denied": self.denied,
            "hit_rate": self.hit_rate,
            "reuse_rate": self.reuse_rate,
            "bypasses": _plain(self.bypasses),
            "not_stored": _plain(self.not_stored),
            "samples_from_cache": self.samples_from_cache,
            "samples_from_upstream": self.samples_from_upstream,
            "tokens_saved": self.tokens_saved,
            "upstream_seconds_saved": round(self.upstream_seconds_saved, 6),
        }


def _share(part: int, others: int) -> float:
    return part / (part + others) if part else 0.0


def _plain(counts: Counter[Reason]) -> dict[str, int]:
    return {str(reason): count for reason, count in sorted(counts.items())}

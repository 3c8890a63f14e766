"""What became of calls that were sent, in sum.

Pure. Reads answers of the cached APIs, as JSON or as streams, and what the cache says of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from sglang_cached_addon.core.call_head import by_name
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.wire.connection import WholeResponse

MOST_FAILED = 100
"""So many calls that failed are listed."""

_HAVE = re.compile(r"(\d+) of \d+ stored")
_DETAIL = re.compile(r'detail="?(?:\d+ of \d+ stored(?:, )?)?([a-z0-9.-]+)')


@dataclass(slots=True)
class Tally:
    """Sums over calls."""

    sent: int = 0
    """Those that were answered, or have failed."""
    hits: int = 0
    partial_hits: int = 0
    collapsed: int = 0
    misses: int = 0
    bypasses: int = 0
    samples: int = 0
    """In all answers."""
    generated: int = 0
    """Those of them that were not there before, and were generated for these calls."""
    tokens: int = 0
    """Completion tokens of all answers, where they say so."""
    seconds: float = 0.0
    not_stored: Counter[str] = field(default_factory=Counter)
    """Answers that are not stored, by reason."""
    denied: Counter[str] = field(default_factory=Counter)
    """Calls whose samples are not all stored, where upstream was not to be asked, by reason."""
    failures: Counter[str] = field(default_factory=Counter)
    """Calls without an answer, by what was said."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    """The first of these, with the number of the line."""
    stopped: str | None = None
    """Why not all calls were sent."""

    def fail(self, number: int, name: str, why: str) -> None:
        """Counts a call that has failed."""
        self.sent += 1
        self.failures[why] += 1
        if len(self.failed) < MOST_FAILED:
            self.failed.append({"line": number, "custom_id": name or None, "why": why})

    def take(self, answer: WholeResponse) -> None:
        """Counts a call that was answered with a 200, or denied."""
        headers = _headers(answer)
        kind = headers.get(b"x-cache", "BYPASS").lower()
        said = headers.get(b"cache-status", "")
        reason = _DETAIL.search(said)
        if kind == Kind.DENIED:
            self.sent += 1
            self.denied[reason[1] if reason else kind] += 1
            return
        is_stream = headers.get(b"content-type", "").startswith("text/event-stream")
        samples, tokens = _counted(_events(answer.body) if is_stream else _parsed(answer.body))
        self.sent += 1
        self.hits += kind == Kind.HIT
        self.partial_hits += kind == Kind.PARTIAL
        self.collapsed += kind == Kind.COLLAPSED
        self.misses += kind == Kind.MISS
        self.bypasses += kind == Kind.BYPASS
        self.samples += samples
        self.tokens += tokens
        have = _HAVE.search(said)
        if kind in (Kind.MISS, Kind.BYPASS, Kind.PARTIAL):
            self.generated += samples - (int(have[1]) if have else 0)
            if "; stored" not in said and not is_stream:
                self.not_stored[reason[1] if reason else "route"] += 1

    @property
    def is_whole(self) -> bool:
        """Whether all calls were answered."""
        return not (self.denied or self.failures or self.stopped)

    def as_json(self) -> dict[str, Any]:
        members = {each.name: getattr(self, each.name) for each in fields(self)}
        counts = {
            name: dict(value) for name, value in members.items() if isinstance(value, Counter)
        }
        return {**members, **counts, "seconds": round(self.seconds, 3)}


def is_denied(answer: WholeResponse) -> bool:
    """Whether the cache was not to ask upstream, and has not all that was asked for."""
    return _headers(answer).get(b"x-cache", "").lower() == Kind.DENIED


def _headers(answer: WholeResponse) -> dict[bytes, str]:
    return {name: value.decode("latin-1") for name, value in by_name(answer.headers).items()}


def told(answer: WholeResponse) -> str:
    """What an answer says that is a failure."""
    (value, *_) = [*_parsed(answer.body), None]
    error = value.get("error", value) if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    text = f": {message}" if isinstance(message, str) else ""
    return f"status {answer.status}{text}"


def _parsed(body: bytes) -> Iterator[Any]:
    try:
        yield orjson.loads(body)
    except ValueError:
        return


def _events(body: bytes) -> Iterator[Any]:
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield from _parsed(line[5:])


def _counted(answers: Iterator[Any]) -> tuple[int, int]:
    """How many samples, and completion tokens, an answer has, or the events of a stream."""
    seen: dict[int, int] = {}
    usage = 0
    for answer in answers:
        for k, one in enumerate(answer if isinstance(answer, list) else [answer]):
            if not isinstance(one, dict):
                continue
            if isinstance(meta := one.get("meta_info"), dict):
                count = meta.get("completion_tokens")
                seen[one.get("index", k)] = count if isinstance(count, int) else 0
            for place, choice in enumerate(one.get("choices") or ()):
                seen.setdefault(choice.get("index", place), 0)
            if isinstance(said := one.get("usage"), dict):
                usage = said.get("completion_tokens") or usage
    return len(seen), usage or sum(seen.values())

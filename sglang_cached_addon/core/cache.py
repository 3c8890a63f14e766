"""What is kept of an answer, and what every store of it offers.

Pure: values, and the protocol of a store. A pool is the ordered samples of one key; which of them
count is a question of when they were stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored generation."""

    answer: bytes
    """Compact JSON: the API's whole answer for `n=1`."""
    stored_at: float
    """Unix time in seconds."""
    seconds: float
    """How long the upstream call took that gave it."""
    tokens: int
    """Completion tokens."""
    deltas: bytes = b""
    """As `Generation.deltas`."""


SKEW = 5.0
"""Seconds that clocks may differ by. What is dated further ahead is of a clock that was wrong, and
of no age that could be told."""


def counts(stored_at: float, since: float, now: float) -> bool:
    """Whether a sample of that time was stored since then; one of the future was not."""
    return since == -inf or since <= stored_at <= now + SKEW


def slots(times: Sequence[float], count: int, since: float, now: float) -> list[int]:
    """Which places of a pool so many new samples take, in ascending order: those of samples that do
    not count, and what is more the ones behind its end. `times`: when its samples were stored."""
    if since == -inf:
        return list(range(len(times), len(times) + count))
    stale = [place for place, at in enumerate(times) if not counts(at, since, now)][:count]
    return [*stale, *range(len(times), len(times) + count - len(stale))]


class Lease(Protocol):
    """The right to fill some pools, which no other proxy has meanwhile."""

    def release(self) -> None:
        """What was to be stored is stored, or will not be. Returns at once; what was appended
        before comes to others before this does."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of looking further than what is at hand."""

    lease: Lease | None = None
    is_shared: bool = False
    """Another proxy had the lease, and has let go of it: there may be more to bring by now."""


class Store(Protocol):
    """Where pools live. Methods return at once; what is slow happens elsewhere."""

    @property
    def generation(self) -> int:
        """Rises when samples are removed. Within one generation, pools only grow at their end."""

    @property
    def clears(self) -> int:
        """Rises when somebody clears the store, or a part of it."""

    @property
    def now(self) -> float:
        """Unix seconds."""

    def is_expired(self, stored_at: float) -> bool:
        """Whether a sample of that time is no more."""

    def touch(self, keys: Sequence[bytes]) -> None:
        """Pools were used, as `get` notes by itself."""

    def get(self, key: bytes) -> Sequence[Sample]:
        """What is at hand of the pool of this key, oldest first: all or nothing of it, or its
        beginning."""

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        """Brings what is not at hand of these pools, up to so many samples each; None if there is
        nothing to wait for. Who `claims` what is still short then gets a lease for it, unless
        others have one: those are waited for."""

    def find(self, raw: bytes) -> bytes | None:
        """The key of the pool whose first sample answers a body of this name."""

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float = -inf,
    ) -> bool:
        """Adds to a pool. `content` is the canonical call, kept for people who read the journal;
        `raw`, if any, the name of a body that the pool's first sample answers. In the order of the
        pool, samples that do not count (see `counts`) give their places to as many new ones; what
        is new beyond those comes behind the others. False if it cannot be kept: nothing has
        changed, then."""

    def room(self) -> Awaitable[None] | None:
        """To be waited for by who has much to store; None if there is room, or if waiting would
        be for nothing."""

    def has_room(self, size: int) -> bool:
        """Whether so many bytes could be kept just now, or in a moment."""

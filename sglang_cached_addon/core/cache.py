"""What is kept of an answer, and what every store of it offers.

Pure: values, and the protocol of a store. A pool is the ordered samples of one key; which of them
count is a question of when they were stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol


class Sample(NamedTuple):
    """One stored generation."""

    answer: bytes
    """Compact JSON: the API's whole answer for `n=1`."""
    stored_at: float
    """When it was stored, in Unix seconds."""
    seconds: float
    """How long the upstream call took that it came from."""
    tokens: int
    """How many completion tokens it has."""
    deltas: bytes = b""
    """As `Generation.deltas`."""
    origin: bytes = b""
    """16 bytes that tell the call that it was generated for from others with the same key, where a
    rule leaves out what they differ by (`LeftOut.origin`); empty where none does."""


SKEW = 5.0
"""By how many seconds clocks may differ. A sample that is dated further ahead comes from a clock
that was wrong, so that nobody knows how old it is."""


def counts(stored_at: float, since: float, now: float) -> bool:
    """Whether a sample that was stored at that time is new enough: not before `since`, and not in
    the future."""
    return since == -inf or since <= stored_at <= now + SKEW


def slots(times: Sequence[float], count: int, since: float, now: float) -> list[int]:
    """Which places of a pool so many new samples take, in ascending order: first those of samples
    that do not count, then the ones behind its end. `times` are when its samples were stored."""
    if since == -inf:
        return list(range(len(times), len(times) + count))
    stale = [place for place, at in enumerate(times) if not counts(at, since, now)][:count]
    return [*stale, *range(len(times), len(times) + count - len(stale))]


@dataclass(frozen=True, slots=True)
class Addition:
    """Samples that are to be appended to a pool, and what is said of them."""

    key: bytes
    """The key of the pool."""
    dialect: str
    """The name of the API that the answers are of."""
    content: bytes
    """The canonical call, kept for people who read the journal; empty if it is not known, or kept
    already."""
    samples: Sequence[Sample]
    raw: bytes = b""
    """The digest of a body that the pool's first sample answers; empty if there is none."""
    since: float = -inf
    """The samples take the places of those that do not count since this time (see `counts`), in the
    order of the pool, and then those behind its end."""
    is_last: bool = True
    """No more samples of the same answer follow for this pool."""


class Document(Protocol):
    """A small JSON document that is kept beside the samples: what is known of upstream."""

    @property
    def is_rejected(self) -> bool:
        """Whether what it said was lost, as it made no sense."""

    def load(self) -> dict[str, Any]: ...

    def reject(self, why: str) -> None:
        """Moves aside what was loaded and makes no sense, and tells people why."""

    def save(self, document: dict[str, Any]) -> None:
        """Raises OSError."""


class Lease(Protocol):
    """The right to fill some pools. No other proxy has it at the same time."""

    def release(self) -> None:
        """Gives the right back: what was to be stored is stored, or will not be. Returns at once;
        other proxies see what was appended before they see this."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of asking the shared store for samples that this process does not have."""

    lease: Lease | None = None
    """The right to fill what is still short, where it was claimed and granted."""
    is_shared: bool = False
    """Another proxy had the lease, and has given it back: there may be more samples by now."""


class Store(Protocol):
    """Where pools live. Its methods return at once; what is slow happens elsewhere."""

    @property
    def generation(self) -> int:
        """A number that rises when samples are removed. While it stays, pools only grow at their
        end."""

    @property
    def clears(self) -> int:
        """A number that rises when somebody clears the store, or a part of it."""

    def cleared(self, keys: Iterable[bytes]) -> int:
        """A number that rises when somebody clears any of these pools."""

    @property
    def now(self) -> float:
        """The present time in Unix seconds."""

    def is_expired(self, stored_at: float) -> bool:
        """Whether a sample that was stored then is too old to exist."""

    def touch(self, keys: Sequence[bytes]) -> None:
        """Notes that pools were used. `get` notes it by itself."""

    def get(self, key: bytes) -> Sequence[Sample]:
        """The samples of a pool that this process has, oldest first: all, none, or the first
        ones."""

    def size(self, key: bytes) -> float:
        """How many samples a pool has, with those that this process does not have; infinite where
        that is not known."""

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        """Fetches samples of these pools that this process does not have, up to so many of each;
        None if there is nothing to wait for. With `claims`, a lease for what is still short is
        asked for; where another proxy has it, that one is waited for."""

    def find(self, raw: bytes) -> bytes | None:
        """The key of the pool whose first sample answers the body with this digest."""

    def append(self, addition: Addition) -> bool:
        """Adds samples to a pool. Gives False if they cannot be kept, or not all of them."""

    def room(self) -> Awaitable[None] | None:
        """What a caller that has much to store waits for; None if there is room, or if waiting
        would not help."""

    def has_room(self, size: int) -> bool:
        """Whether so many bytes could be kept just now, or in a moment."""

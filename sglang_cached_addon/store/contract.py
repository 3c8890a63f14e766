"""What every store is that a proxy opens: `cache.Store`, and what else its user asks of it.

A store in memory, in a folder, or shared with other proxies. What only shared stores have, the
others have too, with nothing in it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sglang_cached_addon.core.cache import Document, Sample, Store, counts
from sglang_cached_addon.core.epochs import Epochs

if TYPE_CHECKING:
    from sglang_cached_addon.store.clearing import Cleared
    from sglang_cached_addon.store.journal import Journal
    from sglang_cached_addon.store.journal.follower import Follower
    from sglang_cached_addon.store.journal.index import Index
    from sglang_cached_addon.store.journal.loading import Loaded
    from sglang_cached_addon.store.memory import MemoryStore
    from sglang_cached_addon.store.redis.runs import SharedRuns


_T = TypeVar("_T")


def done(result: _T) -> Future[_T]:
    """What has happened already, with its result."""
    future: Future[_T] = Future()
    future.set_result(result)
    return future


class Unavailable(OSError):
    """It cannot be done now, as a shared server does not answer."""


class Holder(Protocol):
    """Who knows the epochs of models."""

    @property
    def epochs(self) -> Epochs: ...

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> None:
        """Takes the epochs that others have made of those that were known."""


class OpenStore(Store, Protocol):
    """A store that a proxy has opened."""

    memory: MemoryStore
    """The pools that are in memory."""
    journal: Journal | Follower | None
    """The journal of its folder; None without a folder."""
    state: Document
    """What is known of the upstream, beside the answers."""
    loaded: Loaded
    """What was found at open."""
    name: str = ""
    """The shared server's name; empty where nothing is shared."""
    runs: SharedRuns | None = None
    """The runs that proxies share; None where nothing is shared."""
    salt: int = 0
    """As `Epochs.salt`: above 0 where others give epochs, too."""

    @property
    def index(self) -> Index | MemoryStore:
        """All that is stored here, and its sums."""

    @property
    def lost(self) -> int:
        """The number of samples that were kept, and could not be written before the end."""
        return self.journal.lost if self.journal else 0

    @property
    def unsent(self) -> int:
        """The number of writes that are about to go out to a shared server."""
        return 0

    @property
    def ttl(self) -> float:
        """How long a sample is kept, in seconds."""

    @property
    def now(self) -> float:
        return time.time()

    def is_expired(self, stored_at: float) -> bool:
        return self.ttl < inf and not counts(stored_at, (now := self.now) - self.ttl, now)

    def remove(self, key: bytes) -> None:
        """Lets go of a pool."""

    async def look(self, keys: Collection[bytes]) -> Mapping[bytes, Sequence[Sample]]:
        """The samples of these pools as they are now, those of the disk and of a shared server,
        too. They do not count as used for that."""

    def clear(self, model: bytes | None = None, *, others: bool = False) -> Future[Cleared]:
        """Empties the store: nothing that is there now is given from now on. The future is done
        when no restart brings it back. With a `model`, only what belongs to it is removed (as a key
        begins), or what belongs to all `others`."""

    def delete(self, key: bytes) -> Future[None]:
        """Removes a pool here for good, from memory now and from the rest in its turn; the future
        is done when no restart brings it back. Its text is in the folder until that is
        compacted."""

    async def delete_everywhere(self, key: bytes) -> Future[None]:
        """As `delete`, and for all with whom the pool is shared, before this returns. Raises
        `Unavailable` where they cannot be told, and then has not removed it here."""
        return self.delete(key)

    def compact(self) -> Future[None]:
        """Has the folder rid of what was removed; the future is done when that has happened."""
        return done(None)

    def start(self, holder: Holder) -> None:
        """Begins to share, in the background, where there is somebody to share with."""
        return

    def facts(self) -> dict[str, Any]:
        """The state of the sharing, for people; empty where nothing is shared."""
        return {}

    def close(self) -> None:
        """Writes what is pending, and lets go of it all."""
        return

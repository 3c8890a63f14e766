"""A fetch under way, as those see it who wait for it. Knows asyncio, and not what is brought."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.stream import Stream


@dataclass(frozen=True, slots=True)
class Errand:
    """What people are told of a call to upstream."""

    id: str | None
    """The id of its request; None where it has none."""
    api: str
    path: str
    model: str
    """As the call names it."""
    since: float
    """When it began: Unix seconds."""
    samples: int
    """How many it asks for."""
    run: str
    """Empty for none."""


@dataclass(slots=True, eq=False)
class Flight:
    """One call to upstream."""

    keys: Collection[bytes]
    """The names of the pools that it fills."""
    identity: Hashable = None
    """Calls of one identity have one answer."""
    stamp: Hashable = None
    """What it brings counts while this does."""
    credential: bytes = b""
    """The credential of the client that began it."""
    stream: Stream | None = None
    """The events of a streamed fetch."""
    is_addition: bool = True
    """What it brings is an addition to what is stored, and does not replace that."""
    origins: Sequence[Collection[bytes]] = ()
    """As `Fetch.origins`."""
    task: asyncio.Task[None] | None = None
    greeting: asyncio.Future[Any] | None = None
    """What upstream says of itself on the connection that its answer comes on."""
    is_flying: bool = True
    """Upstream has not answered, or not in full."""
    clients: int = 0
    """How many clients want what it brings."""
    errand: Errand | None = None
    """What it is, for people."""
    brings: Mapping[bytes, Sequence[Sample]] = field(default_factory=dict)
    """The samples of each pool, once it has landed."""
    unstored: dict[bytes, Sequence[Sample]] = field(default_factory=dict)
    """Those of these samples that are not in the store yet."""
    refusal: Reason | None = None
    """Why what it brings is not stored, as far as its answer says."""
    dropped: Reason | None = None
    """Why what it has brought was not stored in the end."""
    answer: Any = None
    """What upstream answered, as an `Arrived`, which this module does not know."""

    @property
    def id(self) -> str:
        """Its request id; empty if it has none."""
        return self.errand.id or "" if self.errand else ""

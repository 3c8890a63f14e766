"""The steps that bring a call to its answer, as values: each is named before it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.findings import Fetch
from sglang_cached_addon.service.flight import Flight


@dataclass(frozen=True, slots=True)
class Complete:
    """All samples are at hand: the answer is put together."""


@dataclass(frozen=True, slots=True)
class Follow:
    """The stream of another call is on its way: it is read along."""

    flight: Flight


@dataclass(frozen=True, slots=True)
class Hold:
    """Upstream is asked to abort the call, or what it waited for: that is waited for."""

    abort: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Gather:
    """Equal calls of its run may be about to come: they are waited for, to be fetched together."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Reuse:
    """It is greedy: what is stored for others of its family may answer it, too."""


@dataclass(frozen=True, slots=True)
class LookFurther:
    """Upstream is not to be asked: a shared store may have the samples."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Others fetch what is short: that is waited for."""

    needs: Mapping[bytes, int]
    """The sizes that pools are to have, by their keys."""
    flights: tuple[Flight, ...]
    """What is waited for."""


@dataclass(frozen=True, slots=True)
class PassOn:
    """It cannot be answered from here: upstream gets the call as it is."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Lead:
    """Nobody else fetches what is short."""

    fetch: Fetch


Step = Complete | Follow | Gather | Hold | LookFurther | Wait | PassOn | Lead | Reuse
"""What brings a call further."""

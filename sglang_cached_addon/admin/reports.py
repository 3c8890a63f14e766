"""What the proxy tells of itself: `/cache/stats`, `/cache/info`, `/health`, `/cache/metrics`,
`/cache/history`.

Reads an open cache and writes nothing; clearing is left to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_cached_addon import __version__
from sglang_cached_addon.admin.access import RouteAnswer
from sglang_cached_addon.admin.history import History
from sglang_cached_addon.assembly import Parts, memory_bytes
from sglang_cached_addon.catalog import Catalog
from sglang_cached_addon.core import keys
from sglang_cached_addon.core.timings import Timings
from sglang_cached_addon.service.explaining import Explaining
from sglang_cached_addon.service.runs import ShownRuns
from sglang_cached_addon.settings import Settings
from sglang_cached_addon.upstream import Health, Upstream


@dataclass(frozen=True, slots=True)
class Reports:
    """What the proxy tells of itself. All but `health` raise OSError where no cache is open."""

    parts: Parts | None
    """The open cache; None where none is open."""
    settings: Settings | None
    """The settings as they are now; None before mitmproxy has told them."""
    failure: str | None
    """Why no cache is open."""
    now: float
    """The present time of the monotonic clock, in seconds."""
    timings: Timings = field(default_factory=Timings)
    history: History | None = None
    time: float = 0.0
    """The present Unix time."""
    lane_off: str = ""
    """Why the fast lane is off; empty where it is not."""

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and what is stored."""
        parts = self._opened()
        store, flights = parts.store, parts.service.flights
        return {
            "num_keys": store.index.entries,
            "total_responses": store.index.samples,
            "cache_file": str(store.journal.path) if store.journal else None,
            "pending_writes": store.journal.pending if store.journal else 0,
            "dropped_writes": store.journal.dropped if store.journal else 0,
            "fetches_in_flight": len(flights),
            "unconfirmed": flights.unconfirmed,
            "streams_in_flight": flights.streams,
            "followers": flights.waiting,
            **parts.exchange.counters.as_json(),
            **({"shared": shared} if (shared := store.facts()) else {}),
        }

    def info(self) -> dict[str, Any]:
        """The counts, and how the proxy is set up."""
        parts, settings = self._opened(), self.settings
        assert settings
        store, upstream = parts.store, parts.upstream
        return {
            **self.stats(),
            "cache_dir": str(settings.cache_path),
            "version": __version__,
            "upstream": upstream.url,
            "model": _model(upstream),
            "models": _models(upstream, store.index.by_model()),
            "settings": {
                **settings.as_json(),
                "memory_bytes": int(memory_bytes(settings)),
                "ignore": [rule.as_json() for rule in parts.exchange.lookup.rules],
                "store": store.name,
            },
            "dialects": {
                dialect.name: store.index.by_dialect[dialect.name]
                for dialect in parts.dialects.values()
            },
            "lane_off": self.lane_off or None,
            "memory_bytes": store.memory.bytes,
            "file_bytes": parts.file_bytes,
            "loaded": {
                "keys": store.loaded.keys,
                "samples": store.loaded.samples,
                "skipped_lines": store.loaded.skipped,
                "torn_bytes": store.loaded.torn,
            },
        }

    def health(self) -> dict[str, Any]:
        """That the proxy lives, and the upstream's state, as far as it is known."""
        url, state = None, Health.UNKNOWN
        if self.parts:
            url, state = self.parts.upstream.url, self.parts.upstream.inquiry.look(self.now)
        return {"status": "healthy", "sglang_url": url, "upstream": {"url": url, "state": state}}

    def metrics(self) -> RouteAnswer:
        """All counts since the start, as Prometheus reads them."""
        from sglang_cached_addon.admin import metrics  # for the first who asks

        parts = self._opened()
        body = metrics.text(parts, self.timings, parts.upstream.inquiry.look(self.now))
        return RouteAnswer(200, body, {"Content-Type": metrics.MEDIA_TYPE})

    def past(self, after: float) -> dict[str, Any]:
        """What was counted since a Unix time."""
        self._opened()
        if self.history is None:
            raise OSError("what was counted over time is known to a running proxy only")
        return self.history.as_json(after)

    @property
    def explaining(self) -> Explaining:
        """Who explains calls."""
        return self._opened().explaining

    @property
    def runs(self) -> ShownRuns:
        """The runs that are known."""
        return self._opened().service.runs

    @property
    def catalog(self) -> Catalog:
        """What is stored."""
        return self._opened().catalog

    def flights(self) -> dict[str, Any]:
        """The fetches under way."""
        return {"flights": self._opened().service.flights.shown()}

    async def delete(self, prefix: str, *, now: bool) -> dict[str, Any]:
        """As `Parts.delete`."""
        key, samples = await self._opened().delete(prefix, now=now)
        is_gone = now or self._opened().store.journal is None
        return {"deleted": key.hex(), "samples": samples, "is_compacted": is_gone}

    async def clear(self, which: str) -> dict[str, Any]:
        """As `Parts.clear`."""
        entries, samples = await self._opened().clear(which)
        return {"status": "success", "cleared_keys": entries, "cleared_responses": samples}

    def _opened(self) -> Parts:
        if self.parts is None:
            raise OSError(self.failure or "the cache is not open")
        return self.parts


def _model(upstream: Upstream) -> dict[str, Any]:
    """What `/cache/info` tells of the present model."""
    identity = upstream.model.identity
    return {
        "name": identity.model if identity else None,
        "fingerprint": upstream.model.fingerprint,
        "weight_version": identity.weight_version if identity else None,
        "epochs": upstream.model.epochs.as_json(),
        "asks_keys": upstream.gate.asks_keys,
    }


def _models(upstream: Upstream, samples: dict[str, int]) -> list[dict[str, Any]]:
    """All models that were met; `samples` are counted by key prefix in hex."""
    return [
        {
            "name": name,
            "fingerprint": fingerprint,
            "key": (key := keys.prefix(fingerprint).hex()),
            "samples": samples.get(key, 0),
        }
        for fingerprint, name in upstream.model.names.items()
    ]

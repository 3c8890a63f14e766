"""Puts the cache together from its settings: store, upstream, exchange and service.

The one place that knows which parts there are and what each of them needs. What mitmproxy says
of the server behind comes as a `Target`; of clients, flows and hooks it knows nothing.
"""

from __future__ import annotations

import ssl
import sys
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from sglang_cached_addon import dialects
from sglang_cached_addon.catalog import Catalog
from sglang_cached_addon.catalog.entry import Models
from sglang_cached_addon.catalog.sieve import models_named
from sglang_cached_addon.core import families, identity, keys
from sglang_cached_addon.core.admission import Asker, Probe
from sglang_cached_addon.core.call_head import CallHeads
from sglang_cached_addon.core.policy import Mode
from sglang_cached_addon.dialects.base import Dialect, generates, probes_of
from sglang_cached_addon.service import Service
from sglang_cached_addon.service.deletion import Deletion
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.explaining import Explaining
from sglang_cached_addon.service.gathering import Gathering
from sglang_cached_addon.service.nearby import Nearby
from sglang_cached_addon.service.runs import Runs
from sglang_cached_addon.settings import Settings
from sglang_cached_addon.store import DiskStore, Limits, ignore_file, machine_memory, run_log
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.journal.sketches import Sketches
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.redis import SharedStore
from sglang_cached_addon.store.run_log import RunLog
from sglang_cached_addon.upstream import Upstream
from sglang_cached_addon.wire.observing import Observer


@dataclass(frozen=True, slots=True)
class Target:
    """The server behind the proxy, as mitmproxy's options name it."""

    url: str
    tls: ssl.SSLContext | None = None
    """How TLS is spoken to it; None for plain HTTP."""
    keeps_host: bool = False
    """Whether requests keep the `Host` that the client has sent."""


@dataclass(frozen=True, slots=True)
class Parts:
    """An open cache."""

    dialects: Mapping[tuple[str, str], Dialect]
    heads: CallHeads
    store: OpenStore
    upstream: Upstream
    exchange: Exchange
    service: Service
    explaining: Explaining
    nearby: Nearby
    run_log: RunLog | None
    catalog: Catalog
    deletion: Deletion

    @property
    def place(self) -> str:
        """Where answers are kept, for people."""
        shared = [self.store.name] if self.store.name else []
        folder = [str(self.store.journal.path)] if self.store.journal else []
        return " and ".join([*shared, *folder])

    @property
    def unfinished(self) -> int:
        """How many fetches and writes to a shared store are under way."""
        return len(self.service.flights) + self.store.unsent

    @property
    def file_bytes(self) -> int:
        """The size of the journal; 0 where there is none."""
        try:
            return self.store.journal.path.stat().st_size if self.store.journal else 0
        except OSError:
            return 0

    async def clear(self, which: str) -> tuple[int, int]:
        """Removes what belongs to the `current` model, to every `other`, to those of a name, to one
        by its key in hexadecimal, or `all`; returns the numbers of removed entries and samples once
        the disk has it. Raises NotFound for a name that no model has, and OSError."""
        models: Collection[bytes] | None = (keys.prefix(self.upstream.model.fingerprint),)
        if which not in ("current", "other"):
            models = None if which == "all" else models_named(which, models_of(self.upstream))
        return await self.deletion.clear(models, others=which == "other")

    async def delete(self, prefix: str, *, now: bool) -> tuple[bytes, int]:
        """Removes the entry whose key begins so, as `Deletion.delete`: the key, and the number of
        its samples. Raises as `Catalog.find`."""
        key = await self.catalog.find(prefix)
        return key, await self.deletion.delete(key, now=now)

    def close(self) -> int:
        """Writes what is left to be written; the number of samples that could not be."""
        self.upstream.close()
        self.nearby.close()
        if self.run_log:
            self.run_log.close()
        self.store.close()
        return self.store.lost


def assemble(settings: Settings, target: Target, observer: Observer | None = None) -> Parts:
    """Opens the store and puts the rest around it; raises ValueError or `StoreError`. The
    `observer` sees what upstream is sent."""
    store = _open_store(settings)
    log = None
    try:
        if settings.has_folder and not (settings.readonly or store.runs):
            if settings.overwrite_cache:
                (settings.cache_path / run_log.NAME).unlink(missing_ok=True)
            log = RunLog(settings.cache_path, settings.fsync, settings.run_ttl)
        return _around(store, log, settings, target, observer)
    except BaseException:
        if log:
            log.close()
        store.close()
        raise


def memory_bytes(settings: Settings) -> float:
    """Bytes of memory that samples may take."""
    return settings.memory or machine_memory() / 4


def _around(
    store: OpenStore,
    log: RunLog | None,
    settings: Settings,
    target: Target,
    observer: Observer | None,
) -> Parts:
    known = dialects.installed()
    if not settings.messages:
        known = dialects.without(known, "anthropic-messages")
    folder = settings.cache_path if settings.has_folder else None
    apis = {dialect.name for dialect in known.values() if generates(dialect)}
    ignoring = ignore_file.ignoring(settings.ignore, folder, apis)
    exchange = Exchange(known, store, lambda: uuid.uuid4().hex, ignoring)

    def entered(upstream: Upstream) -> None:
        server = upstream.model.identity.server if upstream.model.identity else identity.UNKNOWN
        if not settings.greedy_reuse:
            server = replace(server, reuse=families.NONE)
        exchange.lookup.enter(
            upstream.model.fingerprint, upstream.model.epochs, server, upstream.model.version
        )

    def probes(asker: Asker) -> list[Probe]:
        """The smallest calls that tell whether an asker may generate."""
        return probes_of(known[asker.method, asker.path], asker.model or "")

    upstream = Upstream(
        target.url,
        store.state,
        tls=target.tls,
        keeps_host=target.keeps_host,
        interval=settings.poll_seconds,
        is_offline=settings.mode is Mode.OFFLINE,
        restart=settings.restart,
        probes=probes,
        salt=store.salt,
        entered=entered,
        observer=observer,
    )
    store.start(upstream)

    nearby = Nearby(store, exchange.lookup, Sketches(store.journal.path) if store.journal else None)
    known_runs = store.runs or Runs(log, settings.run_ttl)
    heads = CallHeads(
        settings.key_headers,
        settings.credential_headers,
        settings.run,
        isolates=settings.isolate_by_credential,
    )
    service = Service(
        exchange,
        upstream,
        heads,
        mode=settings.mode,
        collapses=settings.collapse,
        nearest=nearby.sentence,
        runs=known_runs,
        gathering=Gathering(settings.gather_ms / 1000, settings.gather_max),
    )
    explaining = Explaining(
        exchange, upstream, store, nearby, known_runs, heads, mode=settings.mode
    )
    by_name = {dialect.name: dialect for dialect in known.values()}
    catalog = Catalog(store, by_name, lambda: models_of(upstream), known_runs)
    deletion = Deletion(store, exchange.lookup, known_runs)
    return Parts(
        known, heads, store, upstream, exchange, service, explaining, nearby, log, catalog, deletion
    )


def models_of(upstream: Upstream) -> Models:
    """The models that were met, and the present one."""
    names, current = upstream.model.names, upstream.model.fingerprint
    prefixes = {keys.prefix(fingerprint): name for fingerprint, name in names.items()}
    return Models(prefixes, keys.prefix(current) if current else None)


def _open_store(settings: Settings) -> OpenStore:
    """Raises ValueError or `StoreError`."""
    memory = memory_bytes(settings)
    limits = Limits(settings.max_entries, settings.max_bytes, settings.ttl, memory)

    def disk() -> DiskStore:
        return DiskStore(
            settings.cache_path,
            settings.fsync,
            limits,
            is_follower=settings.readonly,
            overwrites=settings.overwrite_cache,
            progress=_show_progress if sys.stderr.isatty() else lambda share: None,
        )

    if not settings.store:
        return disk()
    local = disk() if settings.has_folder else MemoryStore(memory, settings.ttl, keeps_calls=True)
    try:
        return SharedStore(settings.store, local, settings.run_ttl)
    except ValueError as e:
        local.close()
        raise ValueError(f"--store: {e}") from None


def _show_progress(share: float) -> None:
    """A line on the terminal while a large cache is read; 1 at the end of it."""
    line = "" if share >= 1 else f"reading the cache: {share:.0%}"
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

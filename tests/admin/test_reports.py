"""What the proxy tells of itself."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import orjson
import pytest

from sglang_cached_addon.admin.history import NAMES, History
from sglang_cached_addon.admin.reports import Reports
from tests.test_assembly import opened, settings_of

STATS = {
    "num_keys", "total_responses", "cache_file", "pending_writes", "dropped_writes",
    "fetches_in_flight", "unconfirmed", "streams_in_flight", "followers", "hits", "misses",
    "partial_hits", "collapsed", "denied", "hit_rate", "reuse_rate", "bypasses", "not_stored",
    "tokens_saved", "upstream_seconds_saved", "samples_from_cache", "samples_from_upstream",
}  # fmt: skip
INFO = STATS | {
    "cache_dir", "version", "upstream", "model", "models", "settings", "dialects", "memory_bytes",
    "file_bytes", "lane_off", "loaded",
}  # fmt: skip


def test_without_a_cache() -> None:
    """Where no cache is open, the proxy is healthy, and says why it has nothing else to tell."""
    reports = Reports(None, None, "no space", 0.0)
    upstream = {"url": None, "state": "unknown"}
    assert reports.health() == {"status": "healthy", "sglang_url": None, "upstream": upstream}

    def clear() -> None:
        asyncio.run(reports.clear("all"))

    for tell in (reports.stats, reports.info, partial(reports.past, 0.0), clear):
        with pytest.raises(OSError, match="no space"):
            tell()
    with pytest.raises(OSError, match="not open"):
        Reports(None, None, None, 0.0).stats()


def test_members(tmp_path: Path) -> None:
    """Each documented member is there, and all of it is JSON."""

    async def run() -> None:
        with opened(tmp_path) as parts:
            reports = Reports(
                parts, settings_of(tmp_path), None, 0.0, history=History(parts, float)
            )
            assert set(NAMES) < STATS
            with pytest.raises(OSError, match="running proxy"):
                Reports(parts, settings_of(tmp_path), None, 0.0).past(0.0)
            assert reports.past(-1.0)["points"]
            stats, info, health = reports.stats(), reports.info(), reports.health()
            assert set(stats) == STATS
            assert set(info) == INFO
            assert stats["cache_file"] == str(tmp_path / "cache.jsonl")
            assert info["settings"]["max_entries"] is info["settings"]["ttl_seconds"] is None
            assert info["settings"]["memory_bytes"] > 0
            assert health["sglang_url"] == info["upstream"] == parts.upstream.url
            orjson.dumps([stats, info, health])

    asyncio.run(run())


def test_a_shared_store(tmp_path: Path) -> None:
    """What a shared store knows of itself is told, but for its password."""

    async def run() -> None:
        url = "redis://:secret@127.0.0.1:1/0"
        with opened(tmp_path, sglang_store=url) as parts:
            info = Reports(parts, settings_of(tmp_path, sglang_store=url), None, 0.0).info()
            assert info["shared"]["state"] == "down"
            assert info["settings"]["store"] == "redis://127.0.0.1:1/0"
            assert b"secret" not in orjson.dumps(info)

    asyncio.run(run())


def test_clear(tmp_path: Path) -> None:
    """What was removed is counted."""

    async def run() -> None:
        with opened(tmp_path) as parts:
            assert (await Reports(parts, None, None, 0.0).clear("all")) == {
                "status": "success", "cleared_keys": 0, "cleared_responses": 0,
            }  # fmt: skip

    asyncio.run(run())

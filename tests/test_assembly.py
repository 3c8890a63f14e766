"""The parts of a cache, put together from settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.assembly import Parts, Target, assemble
from sglang_cached_addon.settings import OPTIONS, Settings
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.upstream import Upstream
from tests.ports import dead_url

DEFAULTS = {option.name: option.default for option in OPTIONS}


def settings_of(folder: Path, **options: Any) -> Settings:
    return Settings.parse({**DEFAULTS, "sglang_cache_path": str(folder), **options})


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Parts]:
    """An open cache in front of nobody; in a loop."""
    parts = assemble(settings_of(folder, **options), Target(dead_url()))
    try:
        yield parts
    finally:
        assert parts.close() == 0


def test_a_folder(tmp_path: Path) -> None:
    """The journal lies in the folder, which is free again once the cache is closed."""

    async def run() -> None:
        for _ in range(2):
            with opened(tmp_path) as parts:
                assert parts.place == str(tmp_path / "cache.jsonl")
                assert parts.file_bytes == (tmp_path / "cache.jsonl").stat().st_size
                assert parts.unfinished == 0
                assert await parts.clear("all") == (0, 0)

    asyncio.run(run())


def test_a_shared_store(tmp_path: Path) -> None:
    """With a server there is a folder only where one was named, and no password is shown."""

    async def run() -> None:
        url = dead_url().replace("http://", "redis://:secret@")
        with opened(tmp_path, sglang_store=url) as parts:
            assert parts.place.startswith("redis://127.0.0.1:")
            assert parts.place.endswith(f" and {tmp_path / 'cache.jsonl'}")
            assert "secret" not in parts.place
        with opened(Path("~/.sglang_cache"), sglang_store=url) as parts:
            assert " and " not in parts.place
            assert parts.file_bytes == 0

    asyncio.run(run())


def test_what_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    """A cache that cannot be put together does not keep its folder locked."""

    async def run() -> None:
        with pytest.raises(ValueError, match="--store: "):
            assemble(settings_of(tmp_path, sglang_store="redis://host/x"), Target(dead_url()))
        with opened(tmp_path), pytest.raises(StoreError, match="in use"):
            assemble(settings_of(tmp_path), Target(dead_url()))
        (tmp_path / "state.json").mkdir()
        with pytest.raises(StoreError, match=r"state\.json"):
            assemble(settings_of(tmp_path), Target(dead_url()))
        (tmp_path / "state.json").rmdir()
        with opened(tmp_path) as parts:
            assert isinstance(parts.upstream, Upstream)

    asyncio.run(run())

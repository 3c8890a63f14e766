"""A cache in a folder, which is asked in this process, as the proxy that had it would answer.

Puts the cache together as the proxy does (`assembly`), but with a server that is never asked, and
answers with the same routes. Where nothing is to be changed, the folder is read as a follower does,
and may be another process's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson

from sglang_cached_addon.admin import routes
from sglang_cached_addon.admin.access import Caller
from sglang_cached_addon.admin.reports import Reports
from sglang_cached_addon.admin.request import Request
from sglang_cached_addon.assembly import Parts, Target, assemble
from sglang_cached_addon.cli.online import read
from sglang_cached_addon.cli.reach import CacheError
from sglang_cached_addon.service.runs import Runs
from sglang_cached_addon.settings import OPTIONS, Settings
from sglang_cached_addon.store import StoreError, run_lines, run_log
from sglang_cached_addon.store.state import StateFile
from sglang_cached_addon.upstream.facts import Facts

NOWHERE = "http://localhost"
"""Stands for the server where nobody knows which it was; it is not asked."""

HERE = Caller(is_local=True, host="localhost")


class Offline:
    """One folder."""

    is_running = False

    def __init__(self, folder: Path, *, changes: bool) -> None:
        """Opens the folder; raises `CacheError`. `changes`: it is to be changed, and so must not be
        another process's."""
        self.name = str(folder)
        # Nothing that is there is to be removed because of its age: its proxy may keep it longer.
        held = {option.name: option.default for option in OPTIONS} | {
            "sglang_cache_path": str(folder),
            "sglang_mode": "offline",
            "sglang_readonly": not changes,
            "sglang_run_ttl": "",
        }
        settings = Settings.parse(held)
        self._runner = asyncio.Runner()
        try:
            self._parts = self._runner.run(_opened(settings, changes=changes))
        except (ValueError, StoreError) as e:
            self._runner.close()
            raise CacheError(str(e)) from None
        self._settings = settings

    def ask(
        self, method: str, path: str, query: Mapping[str, Any] = {}, body: Any = None
    ) -> dict[str, Any]:
        """As `Cache.ask`."""
        route = routes.find(path)
        if route is None:
            raise CacheError(f"{path} is for a proxy that runs")
        asked = urlencode({name: value for name, value in query.items() if value is not None})
        data = b"" if body is None else orjson.dumps(body)
        request = Request(method, path, asked, data)
        reports = Reports(self._parts, self._settings, None, time.monotonic(), time=time.time())
        answer = self._runner.run(routes.answer(route, request, HERE, "", reports))
        return read(answer.status, answer.body, path)

    def close(self) -> None:
        """Writes what is left to be written."""
        try:
            if lost := self._runner.run(_closed(self._parts)):
                raise CacheError(f"{self.name}: {lost} samples could not be written")
        finally:
            self._runner.close()


async def _opened(settings: Settings, *, changes: bool) -> Parts:
    """Raises ValueError or `StoreError`."""
    folder = settings.cache_path
    state = StateFile(folder, is_ours=False).load()
    parts = assemble(settings, Target(Facts.read(state).url or NOWHERE))
    runs = parts.service.runs
    if not changes and isinstance(runs, Runs):
        runs.log.runs.update(run_lines.read(folder / run_log.NAME))
    return parts


async def _closed(parts: Parts) -> int:
    """How many samples were lost."""
    return parts.close()

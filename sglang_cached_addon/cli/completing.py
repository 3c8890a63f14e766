"""What a shell completes as the value of an option or an argument: models, APIs, runs, keys.

Looked up in the cache that the command line names, as far as that takes no time; where anything
goes wrong, there is nothing to complete. What takes its time to import is imported when it is
wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

from sglang_cached_addon.cli.reach import CacheError, Where, journal_of, reach

MOST_BYTES = 64 << 20
"""A larger file is not read for what might be typed."""

MOST_KEYS = 50

Found = Iterable[str | CompletionItem]
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completing(find: Callable[[click.Context, str], Found]) -> Complete:
    def complete(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
        found: list[CompletionItem] = []
        with suppress(CacheError, click.ClickException, OSError, ValueError):
            for one in find(ctx, typed):
                item = one if isinstance(one, CompletionItem) else CompletionItem(one)
                if str(item.value).startswith(typed):
                    found.append(item)
        return found

    return complete


def _ask(ctx: click.Context, path: str, **query: Any) -> dict[str, Any]:
    """What the cache says that the command line names."""
    given = ctx.params
    where = Where(
        given.get("cache_path") or "", given.get("url") or "", given.get("admin_token") or ""
    )
    if not where.url and journal_of(where.folder).stat().st_size > MOST_BYTES:
        return {}
    with closing(reach(where)) as cache:
        return cache.ask("GET", path, query)


def _models(ctx: click.Context, typed: str) -> Found:
    yield from ("current", "other", "all")
    yield from dict.fromkeys(model["name"] for model in _ask(ctx, "/cache/info").get("models", ()))


def _apis(ctx: click.Context, typed: str) -> Found:
    from sglang_cached_addon.dialects import installed

    return dict.fromkeys(dialect.name for dialect in installed().values())


def _runs(ctx: click.Context, typed: str) -> Found:
    return (run["name"] for run in _ask(ctx, "/cache/runs").get("runs", ()))


def _keys(ctx: click.Context, typed: str) -> Found:
    found = _ask(ctx, "/cache/entries", limit=1000).get("entries", ())
    named = [entry for entry in found if entry["key"].startswith(typed)]
    return (CompletionItem(entry["key"], help=entry["request"][:40]) for entry in named[:MOST_KEYS])


models, apis, runs, keys = (_completing(find) for find in (_models, _apis, _runs, _keys))

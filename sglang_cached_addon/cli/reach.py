"""Which cache a command is about: one behind a running proxy, or a folder that no proxy has.

Both answer the same requests, those of `admin/routes`: the proxy over HTTP (`online`), the folder
in this process (`offline`). `--url` names a proxy; else the lock of the folder says which proxy has
it, and where that listens. A command says whether it changes what is stored: a folder that is only
looked at is read as a follower reads it, beside whoever has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click


class CacheError(Exception):
    """The cache cannot be reached, or does not do what it is asked; the message says why."""


class Cache(Protocol):
    """A cache that can be asked."""

    name: str
    """Its URL, or its folder."""
    is_running: bool
    """Whether a proxy answers; a folder by itself counts no calls."""

    def ask(
        self, method: str, path: str, query: Mapping[str, Any] = {}, body: Any = None
    ) -> dict[str, Any]:
        """What a route of `admin/routes` answers; members of the query that are None are left
        out. Raises `CacheError`."""

    def close(self) -> None:
        """Lets go of it."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where the cache is that a command is about, as its options say."""

    folder: str
    url: str = ""
    token: str = ""


def reach(where: Where, *, changes: bool = False) -> Cache:
    """Opens the cache; raises `CacheError`. `changes`: what is stored is to be changed."""
    from sglang_cached_addon.cli.online import Online

    if where.url:
        return Online(where.url, where.token)
    folder = journal_of(where.folder).parent
    from sglang_cached_addon.store.files import owner_of

    owner = owner_of(folder)
    if owner and owner.url:
        try:
            return Online(owner.url, where.token)
        except CacheError as e:
            message = (
                f"{e} (process {owner.pid}, which has {folder}); --url names another way to it"
            )
            raise CacheError(message) from None
    from sglang_cached_addon.cli.offline import Offline

    return Offline(folder, changes=changes)


def proxy_of(where: Where) -> str:
    """The URL of the proxy that runs; raises `CacheError` where none does."""
    if where.url:
        return (where.url if "://" in where.url else f"http://{where.url}").rstrip("/")
    from sglang_cached_addon.store.files import owner_of

    folder = journal_of(where.folder).parent
    if (owner := owner_of(folder)) and owner.url:
        return owner.url
    raise CacheError(f"no proxy runs with {folder}: start one, or name another with --url")


def journal_of(folder: str, typed: str = "--cache-path") -> Path:
    """The journal of a cache that exists; nothing is made. Raises click's error, which names what
    was `typed` wrongly."""
    text = folder.strip()
    try:
        path = Path(text).expanduser().absolute() / "cache.jsonl"
    except RuntimeError as e:
        raise click.BadParameter(str(e), param_hint=typed) from None
    if not text or not path.is_file():
        message = f"no cache in {path.parent}: there is no {path.name}"
        raise click.BadParameter(message, param_hint=typed)
    return path

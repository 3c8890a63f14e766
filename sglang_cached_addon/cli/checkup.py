"""What `sglang-cached doctor` looks at: programs, machine, folder, proxy, and other servers.

Finds out, and decides nothing: `diagnosis` does. Changes nothing, and so works beside a running
proxy.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sglang_cached_addon.cli import diagnosis, server_diagnosis
from sglang_cached_addon.cli.diagnosis import Finding, Folder, Holder
from sglang_cached_addon.cli.online import Online
from sglang_cached_addon.cli.reach import CacheError
from sglang_cached_addon.cli.server_checkup import ask_redis, ask_server
from sglang_cached_addon.store.files import FILE_MODE, Owner, owner_of
from sglang_cached_addon.store.state import StateFile
from sglang_cached_addon.upstream.facts import Facts
from sglang_cached_addon.wire import descriptors

OURS = ("cache.jsonl", "cache.index", "state.json", "runs.jsonl", "cache.lock")
"""Files of a folder that are looked at."""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at, as the command's options say."""

    folder: Path
    url: str = ""
    """The server's; empty where it is to be found out."""
    store: str = ""
    api_key: str = ""
    admin_token: str = ""
    insecure: bool = False


def examine(patient: Patient) -> Iterator[Finding]:
    """All findings, as they come."""
    yield diagnosis.python(platform.python_version())
    yield diagnosis.mitmproxy(version("mitmproxy"))
    owner = owner_of(patient.folder)
    proxy = _proxy(owner, patient.admin_token)
    yield diagnosis.lane(_faults(), (proxy or {}).get("lane_off"))
    yield diagnosis.folder(_folder(patient.folder))
    yield diagnosis.disk(_free(patient.folder), _size(patient.folder / "cache.jsonl"))
    yield diagnosis.lock(_holder(owner, answers=proxy is not None))
    yield _files(owner)
    url = patient.url or (proxy or {}).get("upstream") or _last_url(patient.folder)
    skew = None
    if url:
        server, skew = asyncio.run(ask_server(url, patient.api_key, insecure=patient.insecure))
        yield from server_diagnosis.upstream(server)
    else:
        yield server_diagnosis.no_server()
    yield diagnosis.clock(time.time(), _newest(patient.folder), skew)
    if patient.store:
        yield asyncio.run(ask_redis(patient.store))


# This process and the proxy's


def _faults() -> dict[str, str]:
    from sglang_cached_addon.proxy.selfcheck import faults  # mitmproxy takes its time to import

    return {part.value: fault for part, fault in faults().items()}


def _proxy(owner: Owner | None, token: str) -> dict[str, Any] | None:
    """What the proxy that has the folder tells; None where none answers."""
    if owner is None or not owner.url:
        return None
    try:
        with closing(Online(owner.url, token)) as proxy:
            health = proxy.ask("GET", "/health")
            told = {"upstream": health.get("sglang_url")}
            with suppress(CacheError):  # it wants the admin token
                told = proxy.ask("GET", "/cache/info")
            return told
    except CacheError:
        return None


def _holder(owner: Owner | None, *, answers: bool) -> Holder | None:
    if owner is None:
        return None
    is_alive = owner.pid.isdigit() and Path(f"/proc/{owner.pid}").exists()
    return Holder(owner.pid, owner.url, is_alive, answers)


def _files(owner: Owner | None) -> Finding:
    """How many files the proxy may open: the one that runs, or one that would be started here."""
    with suppress(OSError, ValueError):
        if owner:
            for line in Path(f"/proc/{int(owner.pid)}/limits").read_text().splitlines():
                if line.startswith("Max open files"):
                    return diagnosis.files(_count(line.split()[3]), f"Process {owner.pid}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = descriptors.MOST if hard == resource.RLIM_INFINITY else min(hard, descriptors.MOST)
    return diagnosis.files(most, "A proxy that is started here")


def _count(text: str) -> int:
    return descriptors.MOST if text == "unlimited" else int(text)


# The folder


def _folder(path: Path) -> Folder:
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    is_writable = os.access(there, os.W_OK | os.X_OK)
    if there != path:
        return Folder(str(path), exists=False, is_folder=there.is_dir(), is_writable=is_writable)
    if not path.is_dir():
        return Folder(str(path), is_folder=False)
    opened = ["the folder"] if _is_open(path) and _names(path) <= set(OURS) else []
    opened += [name for name in OURS if _is_open(path / name)]
    is_ours = path.stat().st_uid == os.getuid()
    return Folder(str(path), is_writable=is_writable, is_ours=is_ours, open_files=opened)


def _names(path: Path) -> set[str]:
    with suppress(OSError):
        return {each.name for each in path.iterdir()}
    return set()


def _is_open(path: Path) -> bool:
    """Whether others may read what is there."""
    with suppress(OSError):
        return bool(stat.S_IMODE(path.lstat().st_mode) & ~FILE_MODE & 0o077)
    return False


def _free(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _newest(path: Path) -> float | None:
    """When something of the folder was last written."""
    times = []
    for name in OURS:
        with suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times, default=None)


def _last_url(path: Path) -> str:
    """The server whose answers are in the folder."""
    with suppress(OSError, ValueError):
        return Facts.read(StateFile(path, is_ours=False).load()).url
    return ""

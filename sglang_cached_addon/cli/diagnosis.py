"""What `sglang-cached doctor` makes of what it has seen: findings, each with what to do about it.

Pure: facts are arguments. `checkup` finds them out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

OLDEST_PYTHON = (3, 11)
OLDEST_MITMPROXY, NEXT_MITMPROXY, TOKEN_MITMPROXY = (11, 0, 2), (13,), (11, 1, 2)

MEGABYTE, GIGABYTE = 10**6, 10**9
FULL_BYTES, SHORT_BYTES = 100 * MEGABYTE, GIGABYTE
"""Below this much free space nothing can be stored for long, and below that not much."""

FEW_FILES, SOME_FILES = 256, 4096
"""Below so many open files some clients wait before long, and below that many of them."""

SKEW_SECONDS = 60.0
"""How far a clock may be off."""


class State(StrEnum):
    """How well something is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found."""

    check: str
    state: State
    text: str
    """What is, as a sentence."""
    remedy: str = ""
    """What to do, where there is something to do."""


def worst(findings: Sequence[Finding]) -> State:
    """The state of all together."""
    states = [finding.state for finding in findings]
    return next((state for state in (State.FAIL, State.WARN) if state in states), State.OK)


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


# The programs


def python(version: str) -> Finding:
    if numbers(version) >= OLDEST_PYTHON:
        return Finding("python", State.OK, f"Python {version}.")
    return Finding("python", State.FAIL, f"Python {version} is too old.", "Use 3.11 or newer.")


def mitmproxy(version: str) -> Finding:
    found = numbers(version)
    if not OLDEST_MITMPROXY <= found < NEXT_MITMPROXY:
        wanted = "Install one from 11.0.2 on, and before 13."
        return Finding("mitmproxy", State.FAIL, f"mitmproxy {version} is not supported.", wanted)
    if found < TOKEN_MITMPROXY:
        page = "the page of --web has no token, and is for this machine alone"
        return Finding("mitmproxy", State.OK, f"mitmproxy {version}; {page}.")
    return Finding("mitmproxy", State.OK, f"mitmproxy {version}.")


def lane(faults: Mapping[str, str], closed: str | None) -> Finding:
    """`faults` are the parts of mitmproxy's inside that are not as expected; `closed` is why the
    lane of the running proxy, or of one that is started as asked, is off."""
    if faults:
        named = "; ".join(f"{what} ({fault})" for what, fault in faults.items())
        text = f"Off, as this mitmproxy is not as expected: {named}."
        return Finding("lane", State.WARN, text, "Install a mitmproxy that is known to work.")
    if closed:
        remedy = "Nothing, if that is wanted: answers are the same, but a hit takes more time."
        return Finding("lane", State.WARN, f"The fast lane is off: {closed}.", remedy)
    return Finding("lane", State.OK, "Nothing keeps plain calls from the fast lane.")


# The machine


@dataclass(frozen=True, slots=True)
class Folder:
    """The cache's folder as it was found."""

    path: str
    exists: bool = True
    is_folder: bool = True
    is_writable: bool = True
    """If there is none: whether it can be made."""
    is_ours: bool = True
    """It belongs to who asks."""
    open_files: Sequence[str] = ()
    """What others may read: names of files, or `the folder`."""


def folder(found: Folder) -> Finding:
    another = "Choose another with --cache-path"
    if not found.is_folder:
        return Finding("folder", State.FAIL, f"{found.path} is no folder.", f"{another}.")
    if not found.is_writable:
        how = "written to" if found.exists else "made"
        text = f"{found.path} cannot be {how} by this user."
        remedy = f"{another}, or give it to the user that the proxy runs as."
        return Finding("folder", State.FAIL, text, remedy)
    if not found.exists:
        return Finding("folder", State.OK, f"{found.path} is made by the first start.")
    if found.open_files:
        text = f"Other users can read {', '.join(found.open_files)} in {found.path}."
        return Finding("folder", State.WARN, text, f"chmod -R go= {found.path}")
    if not found.is_ours:
        text = f"{found.path} belongs to another user, who can read what is in it."
        return Finding("folder", State.WARN, text, "Run the proxy as its owner.")
    return Finding("folder", State.OK, f"{found.path} is its owner's alone.")


def disk(free: int, journal: int) -> Finding:
    """`free` and `journal`: bytes that are free, and that the journal has."""
    text = f"{size(free)} free, and {size(journal)} in the journal."
    if free < FULL_BYTES:
        return Finding("disk", State.FAIL, text, "Make room, or choose another disk.")
    if free < max(SHORT_BYTES, journal):
        remedy = "Make room: while it is compacted, the journal is there twice. See --max-bytes."
        return Finding("disk", State.WARN, text, remedy)
    return Finding("disk", State.OK, text)


def size(count: float) -> str:
    """Bytes in words."""
    unit, name = (GIGABYTE, "GB") if count >= GIGABYTE else (MEGABYTE, "MB")
    return f"{count / unit:,.1f} {name}"


def clock(now: float, newest: float | None, skew: float | None) -> Finding:
    """`newest` is the Unix time of what was written last, `skew` how many seconds the server's
    clock is ahead."""
    if newest is not None and newest - now > SKEW_SECONDS:
        text = f"What is stored is from {newest - now:,.0f} seconds ahead of now."
        return Finding("clock", State.WARN, text, "Set the clock: ages and --ttl go by it.")
    if skew is not None and abs(skew) > SKEW_SECONDS:
        which = "ahead" if skew > 0 else "behind"
        text = f"The server's clock is {abs(skew):,.0f} seconds {which}."
        remedy = "Set both clocks (NTP): ages and --ttl go by them."
        return Finding("clock", State.WARN, text, remedy)
    others = ["the server"] if skew is not None else []
    others += ["what is stored"] if newest is not None else []
    text = f"agrees with {' and '.join(others)}" if others else "was compared with nothing"
    return Finding("clock", State.OK, f"The clock {text}.")


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that has the folder."""

    pid: str
    url: str
    is_alive: bool
    """It is a process of this machine."""
    answers: bool
    """It answers at its URL."""


def lock(holder: Holder | None) -> Finding:
    if holder is None:
        return Finding("lock", State.OK, "No process has the folder.")
    named = f"Process {holder.pid}"
    if holder.answers:
        return Finding("lock", State.OK, f"{named} has the folder, and answers at {holder.url}.")
    if not holder.is_alive:
        text = f"{named} has the folder, and is no process of this machine."
        remedy = "Look in other containers, and on machines that share the disk."
        return Finding("lock", State.WARN, text, remedy)
    if not holder.url:
        return Finding("lock", State.OK, f"{named} has the folder, and does not listen yet.")
    text = f"{named} has the folder, but does not answer at {holder.url}."
    return Finding("lock", State.FAIL, text, f"See its log; `kill {holder.pid}` ends it.")


def files(limit: int, whose: str) -> Finding:
    """`limit`: how many open files the process has at most."""
    text = f"{whose} can have {limit:,} open files."
    remedy = "Raise it: ulimit -n 65536, or LimitNOFILE=65536 in systemd's unit."
    if limit < FEW_FILES:
        return Finding("files", State.FAIL, text, remedy)
    if limit < SOME_FILES:
        return Finding("files", State.WARN, text, remedy)
    return Finding("files", State.OK, text)

"""The addon's options: one table that feeds mitmproxy, the README and the parser.

Pure. mitmproxy holds options as mutable values; `Settings` is our frozen reading of them,
made once per change and never read from mitmproxy while a request is served.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TypeVar

from sglang_cached_addon.core.admission import CREDENTIAL_FIELDS
from sglang_cached_addon.core.policy import Fsync, Mode, Restart
from sglang_cached_addon.core.routing import KeyHeaders


@dataclass(frozen=True, slots=True)
class Option:
    """One mitmproxy option, `--set NAME=VALUE`."""

    name: str
    type: type
    default: str | bool | int
    help: str


CACHE_PATH = "~/.sglang_cache"

OPTIONS = (
    Option(
        "sglang_cache_path",
        str,
        CACHE_PATH,
        "Folder of the cache. It is made if missing, and belongs to one process at a time.",
    ),
    Option(
        "sglang_quiet",
        bool,
        False,
        "No log line for each request.",
    ),
    Option(
        "sglang_express",
        bool,
        True,
        "Answer plain calls in the fast lane, unseen by other addons. "
        "Off by itself where other addons want to see requests, as in mitmweb and mitmdump.",
    ),
    Option(
        "sglang_replay_tokens_per_second",
        int,
        0,
        "How fast stored streams are replayed, per choice; 0 for at once.",
    ),
    Option(
        "sglang_mode",
        str,
        Mode.READWRITE.value,
        "`readwrite`; `readonly` stores nothing; `refresh` fetches everything anew, and replaces; "
        "`offline` never asks upstream; `off` only passes on.",
    ),
    Option(
        "sglang_collapse",
        bool,
        True,
        "Equal calls at the same time are one upstream call.",
    ),
    Option(
        "sglang_isolate_by_credential",
        bool,
        False,
        "Each credential has a cache of its own.",
    ),
    Option(
        "sglang_key_headers",
        str,
        "",
        "Names of request headers that are part of the key, with commas between; those by which "
        "known gateways choose a model are anyway.",
    ),
    Option(
        "sglang_admin_token",
        str,
        "",
        "`/cache/info` and `/cache/clear` want it, as `Authorization: Bearer TOKEN`; without one, "
        "they answer only to the machine itself.",
    ),
    Option(
        "sglang_credential_headers",
        str,
        "",
        "Header fields by which upstream knows a client, beside `Authorization`, `X-Api-Key`, "
        "`Api-Key` and the like; separated by commas. Cookies are none unless they are named here.",
    ),
    Option(
        "sglang_poll_seconds",
        str,
        "5",
        "How often upstream is asked which model it serves, while there is traffic and for ten "
        "minutes after: so long, and as long as it takes to answer, may a hit be of the former "
        "one.",
    ),
    Option(
        "sglang_restart",
        str,
        Restart.SAME.value,
        "What another process behind the URL is taken for that says it has the same model: `same` "
        "keeps its answers; `new` begins anew, for weights that change behind an equal name.",
    ),
    Option(
        "sglang_fsync",
        str,
        "interval",
        "When answers are made to outlive a power cut: `always` with each write, `interval` within "
        "a second, `never` by us.",
    ),
    Option(
        "sglang_max_entries",
        int,
        0,
        "How many entries are kept; those that were not used for the longest time go first. 0 for "
        "any number.",
    ),
    Option(
        "sglang_max_bytes",
        str,
        "",
        "How much is kept in the folder, like `20G`; empty for any amount. The file may be twice "
        "that until it is compacted, which it is by itself.",
    ),
    Option(
        "sglang_ttl",
        str,
        "",
        "How long a sample is kept, like `12h` or `30d`; empty for ever.",
    ),
    Option(
        "sglang_memory",
        str,
        "",
        "How much memory samples may take, like `2G`; what was used lately is there, the rest is "
        "read from the folder. Empty for a quarter of the machine's.",
    ),
    Option(
        "sglang_readonly",
        bool,
        False,
        "Open the folder beside the process that it belongs to, follow what that stores, and "
        "store nothing.",
    ),
    Option(
        "sglang_overwrite_cache",
        bool,
        False,
        "Empty the folder first, when the cache is opened.",
    ),
    Option(
        "sglang_store",
        str,
        "",
        "URL of a Redis or Valkey server that several proxies share, like `redis://host:6379/0`. "
        "With it, there is a folder only where `sglang_cache_path` is not the default.",
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The options, parsed."""

    cache_path: Path
    quiet: bool
    express: bool
    replay_rate: int = 0
    """Tokens a second of each choice of a replayed stream; 0 for at once."""
    mode: Mode = Mode.READWRITE
    collapse: bool = True
    isolate: bool = False
    """Each credential has a cache of its own."""
    admin_token: str = field(default="", repr=False)
    credential_fields: tuple[bytes, ...] = CREDENTIAL_FIELDS
    """Lower-case names of the header fields that a credential is made of."""
    poll: float = 5.0
    """Seconds."""
    restart: Restart = Restart.SAME
    fsync: Fsync = Fsync.INTERVAL
    max_entries: float = inf
    max_bytes: float = inf
    ttl: float = inf
    """Seconds."""
    memory: float | None = None
    """Bytes; None: as the machine has it."""
    readonly: bool = False
    """The folder belongs to somebody else."""
    overwrite: bool = False
    """What the folder has is removed first."""
    store: str = field(default="", repr=False)
    """URL of a server that several proxies share."""
    has_folder: bool = True
    """What is stored is stored in the folder, too."""
    key_headers: KeyHeaders = field(default_factory=KeyHeaders)

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Settings:
        """From option names to values; raises ValueError naming the option."""
        path = str(values["sglang_cache_path"]).strip()
        if not path:
            raise ValueError("sglang_cache_path: must name a folder")
        try:
            folder = Path(path).expanduser().absolute()
        except RuntimeError as e:
            raise ValueError(f"sglang_cache_path: {path}: {e}") from None
        if values["sglang_readonly"] and str(values["sglang_store"]).strip():
            raise ValueError("sglang_readonly: is for a folder alone, not beside sglang_store")
        if values["sglang_overwrite_cache"] and (
            values["sglang_readonly"] or str(values["sglang_store"]).strip()
        ):
            raise ValueError(
                "sglang_overwrite_cache: is for a folder of one's own; what is shared is emptied "
                "with POST /cache/clear"
            )
        store = str(values["sglang_store"]).strip()
        has_folder = not store or path != CACHE_PATH
        for name in ("sglang_max_entries", "sglang_max_bytes"):
            if values[name] and not has_folder:
                raise ValueError(f"{name}: is for a folder, not for sglang_store alone")
        return cls(
            folder,
            bool(values["sglang_quiet"]),
            bool(values["sglang_express"]),
            _rate(int(str(values["sglang_replay_tokens_per_second"]))),
            _mode(str(values["sglang_mode"]), bool(values["sglang_readonly"])),
            bool(values["sglang_collapse"]),
            bool(values["sglang_isolate_by_credential"]),
            str(values["sglang_admin_token"]),
            _credential_fields(str(values["sglang_credential_headers"])),
            _poll(str(values["sglang_poll_seconds"])),
            _restart(str(values["sglang_restart"])),
            _fsync(str(values["sglang_fsync"])),
            _entries(int(str(values["sglang_max_entries"]))),
            _amount("sglang_max_bytes", str(values["sglang_max_bytes"]), SIZES, inf),
            _amount("sglang_ttl", str(values["sglang_ttl"]), TIMES, inf),
            _amount("sglang_memory", str(values["sglang_memory"]), SIZES, None),
            bool(values["sglang_readonly"]),
            bool(values["sglang_overwrite_cache"]),
            store,
            has_folder,
            _key_headers(str(values["sglang_key_headers"])),
        )


SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
"""What units stand for: bytes, and seconds."""

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)")

T = TypeVar("T")


def _amount(name: str, text: str, units: Mapping[str, int], default: T) -> float | T:
    if not text.strip():
        return default
    found = _AMOUNT.fullmatch(text.strip())
    unit = found[2] if found else "?"
    if units is SIZES:
        unit = unit.upper().removesuffix("B").removesuffix("I")
    if not found or unit not in units or not float(found[1]):
        known = ", ".join(unit for unit in units if unit)
        raise ValueError(f"{name}: {text}: must be a number above 0, with a unit ({known}) or none")
    return float(found[1]) * units[unit]


def _key_headers(text: str) -> KeyHeaders:
    try:
        return KeyHeaders(name.strip() for name in text.split(",") if name.strip())
    except ValueError as e:
        raise ValueError(f"sglang_key_headers: {e}") from None


def _fsync(text: str) -> Fsync:
    if text not in tuple(Fsync):
        raise ValueError(f"sglang_fsync: {text}: must be one of {', '.join(Fsync)}")
    return Fsync(text)


def _entries(count: int) -> float:
    if count < 0:
        raise ValueError(f"sglang_max_entries: {count}: must be 0 or more")
    return count or inf


def _rate(rate: int) -> int:
    if rate < 0:
        raise ValueError(f"sglang_replay_tokens_per_second: {rate}: must be 0 or more")
    return rate


def _mode(name: str, is_readonly: bool) -> Mode:
    try:
        mode = Mode(name)
    except ValueError:
        raise ValueError(f"sglang_mode: {name}: must be one of {', '.join(Mode)}") from None
    if is_readonly and mode is Mode.REFRESH:
        raise ValueError("sglang_mode: refresh stores, which sglang_readonly forbids")
    return Mode.READONLY if is_readonly and mode is Mode.READWRITE else mode


def _credential_fields(text: str) -> tuple[bytes, ...]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"sglang_credential_headers: {name}: is no name of a header field")
    return tuple(dict.fromkeys((*CREDENTIAL_FIELDS, *(name.encode() for name in names))))


_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def _restart(text: str) -> Restart:
    try:
        return Restart(text)
    except ValueError:
        raise ValueError(f"sglang_restart: {text}: must be one of {', '.join(Restart)}") from None


def _poll(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise ValueError(f"sglang_poll_seconds: {text}: must be a number from 0.1 to 86400")
    return seconds

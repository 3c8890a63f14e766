"""The addon's options: one table that feeds mitmproxy, the README and the parser.

Pure. mitmproxy holds options as mutable values; `Settings` is our frozen reading of them,
made once per change and never read from mitmproxy while a request is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sglang_cached_addon.policy import Mode


@dataclass(frozen=True, slots=True)
class Option:
    """One mitmproxy option, `--set NAME=VALUE`."""

    name: str
    type: type
    default: str | bool | int
    help: str


OPTIONS = (
    Option(
        "sglang_cache_path",
        str,
        "~/.sglang_cache",
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
        "Answer hits in the fast lane, unseen by other addons. "
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
        "sglang_admin_token",
        str,
        "",
        "`/cache/info` and `/cache/clear` want it, as `Authorization: Bearer TOKEN`; without one, "
        "they answer only to the machine itself.",
    ),
    Option(
        "sglang_poll_seconds",
        str,
        "5",
        "How often upstream is asked which model it serves, while there is traffic: so long may a "
        "hit be of the former one.",
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
    poll: float = 5.0
    """Seconds."""

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
        return cls(
            folder,
            bool(values["sglang_quiet"]),
            bool(values["sglang_express"]),
            _rate(int(str(values["sglang_replay_tokens_per_second"]))),
            _mode(str(values["sglang_mode"])),
            bool(values["sglang_collapse"]),
            bool(values["sglang_isolate_by_credential"]),
            str(values["sglang_admin_token"]),
            _poll(str(values["sglang_poll_seconds"])),
        )


def _rate(rate: int) -> int:
    if rate < 0:
        raise ValueError(f"sglang_replay_tokens_per_second: {rate}: must be 0 or more")
    return rate


def _mode(name: str) -> Mode:
    try:
        return Mode(name)
    except ValueError:
        raise ValueError(f"sglang_mode: {name}: must be one of {', '.join(Mode)}") from None


def _poll(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise ValueError(f"sglang_poll_seconds: {text}: must be a number from 0.1 to 86400")
    return seconds

"""The addon's options: one table that feeds mitmproxy, the README and the parser.

Pure. mitmproxy holds options as mutable values; `Settings` is our frozen reading of them,
made once per change and never read from mitmproxy while a request is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


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
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The options, parsed."""

    cache_path: Path
    quiet: bool
    express: bool
    replay_rate: int = 0
    """Tokens a second of each choice of a replayed stream; 0 for at once."""

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
        )


def _rate(rate: int) -> int:
    if rate < 0:
        raise ValueError(f"sglang_replay_tokens_per_second: {rate}: must be 0 or more")
    return rate

"""What `sglang-cached start` can be asked for: its own flags, and those of the settings.

Pure, and without mitmproxy, which takes its time to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sglang_cached_addon.option import Value, entries, option
from sglang_cached_addon.settings import OPTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What `sglang-cached start` was asked for."""

    sglang_url: str = option(
        None,
        "The SGLang server, like http://localhost:30000.",
        metavar="URL",
    )
    port: int = option(30001, "Where to listen; 0 takes a free port.")
    host: str = option("0.0.0.0", "The address to listen on.")
    options: dict[str, bool | int | str] = field(repr=False)
    """The values of mitmproxy's options, by their names."""
    drain: float = option(
        60.0,
        "How long requests under way may take after SIGTERM or Ctrl+C; a second one ends at once.",
        bounds=(0, 86_400),
        metavar="S",
    )
    drain_accept: float = option(
        0.0,
        "How much of that new connections are still served, for balancers that go on sending.",
        bounds=(0, 86_400),
        metavar="S",
    )
    insecure: bool = option(False, "Do not check the certificate of an https:// upstream.")
    web: bool = option(
        False,
        "Run in mitmweb, and print the URL where flows can be watched.",
    )
    scripts: tuple[str, ...] = option(
        (), "A mitmproxy script to load as well.", metavar="FILE", short="-s", between=","
    )
    sets: tuple[str, ...] = option((), "A mitmproxy option.", metavar="NAME=VALUE", between=",")

    @classmethod
    def parse(cls, given: Mapping[str, Value]) -> Start:
        """Makes a start of what the flags have given, by attribute."""
        options = {entry.attribute: entry for entry in OPTIONS}
        own = {name: value for name, value in given.items() if name not in options}
        held = {options[name].name: options[name].held(given[name]) for name in given.keys() - own}
        return cls(**own, options=held)  # type: ignore[arg-type]


_OWN = tuple(entries(Start))

FLAGS = (*_OWN[:3], *(entry for entry in OPTIONS if entry.has_flag), *_OWN[3:])
"""All flags, in the order in which `--help` shows them."""

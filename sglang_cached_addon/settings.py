"""The settings, in one table: what users can set, how it is called, what it is for, how it is read.

A field that is made with `option` is an entry. It gives mitmproxy's option, the flag of `start`
and its environment variable, their help, the tables of the docs, and a member of `/cache/info`.
Pure. mitmproxy holds options as values that change; `Settings` is our frozen reading of them,
made once per change and never read from mitmproxy while a request is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from sglang_cached_addon.core import ignore_rules, runs
from sglang_cached_addon.core.ignoring import Rule
from sglang_cached_addon.core.log_line import LogFormat
from sglang_cached_addon.core.policy import Fsync, Mode, Restart
from sglang_cached_addon.core.routing import KeyHeaders, credential_fields
from sglang_cached_addon.option import SIZES, TIMES, amount, entries, folder, option

CACHE_PATH = "~/.sglang_cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What mitmproxy's options say."""

    cache_path: Path = option(
        CACHE_PATH,
        "Folder where answers are kept, made if missing. It belongs to one process at a time.",
        parse=folder,
        metavar="FOLDER",
    )
    mode: Mode = option(
        Mode.READWRITE.value,
        "readwrite looks up and stores; readonly stores nothing; refresh fetches everything anew, "
        "and replaces; offline never asks the server; off only passes on.",
        choices=Mode,
    )
    store: str = option(
        "",
        "A Redis or Valkey server that several proxies share, like redis://host:6379/0. Answers "
        "are then kept in a folder only where one is named.",
        parse=str.strip,
        metavar="URL",
        is_secret=True,
    )
    max_bytes: float = option(
        "",
        "How much is kept in the folder, like 20G; any amount by default. The file may be twice "
        "that until it is compacted, which it is by itself.",
        parse=amount(SIZES, inf),
        metavar="SIZE",
    )
    max_entries: float = option(
        0,
        "How many entries are kept; those least recently used go first. 0 for any number.",
        bounds=(0, inf),
        parse=lambda count: count or inf,
        metavar="N",
    )
    ttl: float = option(
        "",
        "How long a sample is kept, like 12h or 30d; for ever by default.",
        parse=amount(TIMES, inf),
        metavar="TIME",
        shown="ttl_seconds",
    )
    memory: float | None = option(
        "",
        "How much memory samples may take, like 2G, by default a quarter of the machine's: what "
        "was used lately is there, the rest is read from the folder.",
        parse=amount(SIZES, None),
        metavar="SIZE",
        shown="memory_bytes",
    )
    fsync: Fsync = option(
        Fsync.INTERVAL.value,
        "When answers are made to outlive a power cut: always with each write, interval within a "
        "second, never by us.",
        choices=Fsync,
    )
    readonly: bool = option(
        False, "Use a folder that another process owns, follow what that stores, and store nothing."
    )
    overwrite_cache: bool = option(False, "Empty the cache first.")
    collapse: bool = option(
        True,
        "Equal calls at the same time are one call to the server.",
        flag="--no-collapse",
        flag_help="Let equal calls at the same time each go to the server.",
    )
    greedy_reuse: bool = option(
        True,
        "A stored greedy answer also answers equal calls with another limit of tokens.",
        flag="--no-greedy-reuse",
        flag_help="Let greedy calls that differ in their limit of tokens each go to the server.",
    )
    messages: bool = option(
        True,
        "Answers to /v1/messages are cached, which do not show whether they were aborted.",
        flag="--no-messages",
        flag_help="Pass /v1/messages on, whose answers do not show whether they were aborted.",
    )
    run: str = option(
        "",
        "The run of calls that name none: in a run, the k-th equal call gets the k-th sample. A "
        "call names one as /run/NAME before its path, or in X-Cache-Run.",
        parse=lambda name: name and runs.checked(name),
        metavar="NAME",
    )
    run_ttl: float = option(
        "7d",
        "How long a run that is not used is remembered, like 12h or 30d.",
        parse=amount(TIMES, inf),
        metavar="TIME",
        shown="run_ttl_seconds",
    )
    gather_ms: float = option(
        "5",
        "How many milliseconds a call of a run waits for equal ones, to be one call with n.",
        bounds=(0, 60_000),
        metavar="MS",
    )
    gather_max: int = option(
        64,
        "How many samples of a prompt are asked for in one such call.",
        bounds=(1, 10_000),
        metavar="N",
    )
    ignore: tuple[Rule, ...] = option(
        "",
        "What is left out of keys: what REGEX matches in the strings at PATH of a call's JSON, as "
        "in 'messages[*].content=Today is .*'; or claude-code, for the changing line of Claude "
        "Code.",
        parse=ignore_rules.of_option,
        metavar="PATH=REGEX",
        between="\n",
    )
    isolate_by_credential: bool = option(
        False, "A cache for each credential, such as an API key, apart from the others'."
    )
    key_headers: KeyHeaders = option(
        "",
        "A request header that is part of the key, like those by which known gateways choose a "
        "model are anyway.",
        parse=KeyHeaders.of,
        metavar="NAME",
        between=",",
    )
    credential_headers: tuple[bytes, ...] = option(
        "",
        "A header in which clients show the server who they are, beside Authorization, X-Api-Key, "
        "Api-Key and the like. Cookies are none unless they are named here.",
        parse=credential_fields,
        metavar="NAME",
        between=",",
    )
    admin_token: str = option(
        "",
        "What the page /cache/ asks for, and the routes below it that show or change what is "
        "stored, as Authorization: Bearer TOKEN; without one, they only answer to this machine. "
        "Better in the environment, where other users of the machine do not see it.",
        metavar="TOKEN",
        is_secret=True,
    )
    poll_seconds: float = option(
        "5",
        "How often the server is asked which model it has, while there is traffic and for ten "
        "minutes after: so long, and as long as it takes to answer, may a hit be of the former "
        "one.",
        bounds=(0.1, 86_400),
        metavar="S",
    )
    restart: Restart = option(
        Restart.SAME.value,
        "What a restarted server that names the same model is taken for: same keeps its answers, "
        "new begins anew, for weights that change behind an equal name.",
        choices=Restart,
    )
    replay_tokens_per_second: int = option(
        0,
        "How fast stored streams are replayed, per choice; 0 for at once.",
        bounds=(0, inf),
        metavar="N",
    )
    quiet: bool = option(False, "No log line for each request.")
    log_format: LogFormat = option(
        LogFormat.TEXT.value, "The log: text, or json, one object a line.", choices=LogFormat
    )
    show_probes: bool = option(False, "Let mitmweb show what the cache itself asks the server.")
    express: bool = option(
        True,
        "Answer plain calls in the fast lane, unseen by other addons. Off by itself where other "
        "addons want to see requests, as in mitmweb and mitmdump.",
        has_flag=False,
    )
    has_folder: bool
    """What is stored is stored in the folder, too."""

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Settings:
        """From option names to values; raises ValueError naming the option."""
        read = {entry.attribute: entry.read(values[entry.name]) for entry in OPTIONS}
        is_named = str(values["sglang_cache_path"]).strip() != CACHE_PATH
        read["has_folder"] = is_named or not read["store"]
        if read["readonly"] and read["mode"] is Mode.READWRITE:
            read["mode"] = Mode.READONLY
        settings = cls(**read)
        _check(settings)
        return settings

    def as_json(self) -> dict[str, Any]:
        """All but the secret ones; null is no limit."""
        shown = (entry for entry in OPTIONS if not entry.is_secret)
        return {
            entry.shown or entry.attribute: _json(getattr(self, entry.attribute)) for entry in shown
        }


def _check(settings: Settings) -> None:
    """Raises ValueError for settings that do not go together."""
    if settings.readonly and settings.store:
        raise ValueError("sglang_readonly: is for a folder alone, not beside sglang_store")
    if settings.overwrite_cache and (settings.readonly or settings.store):
        raise ValueError(
            "sglang_overwrite_cache: is for a folder of one's own; what is shared is emptied "
            "with POST /cache/clear"
        )
    for name in ("max_entries", "max_bytes"):
        if getattr(settings, name) < inf and not settings.has_folder:
            raise ValueError(f"sglang_{name}: is for a folder, not for sglang_store alone")
    if settings.readonly and settings.mode is Mode.REFRESH:
        raise ValueError("sglang_mode: refresh stores, which sglang_readonly forbids")


def _json(value: Any) -> Any:
    if isinstance(value, KeyHeaders):
        return value.named
    if isinstance(value, tuple):
        return [one.as_json() if isinstance(one, Rule) else one.decode() for one in value]
    return str(value) if isinstance(value, Path) else None if value == inf else value


OPTIONS = tuple(entries(Settings, "sglang_"))
"""mitmproxy's options, `--set NAME=VALUE`."""

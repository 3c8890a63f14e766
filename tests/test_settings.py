"""The table of settings: what it feeds, and how each of them is read."""

from __future__ import annotations

import asyncio
import re
from math import inf
from pathlib import Path
from typing import Any

import click
import pytest
from mitmproxy.addonmanager import Loader
from mitmproxy.options import Options
from mitmproxy.test import taddons

from sglang_cached_addon.addon import SglangCached
from sglang_cached_addon.cli.start import start
from sglang_cached_addon.core.policy import Mode, Restart
from sglang_cached_addon.settings import OPTIONS, Settings

DEFAULTS = {option.name: option.default for option in OPTIONS}


def parsed(**values: object) -> Settings:
    """The settings with these options, named without their prefix."""
    return Settings.parse({**DEFAULTS, **{f"sglang_{k}": v for k, v in values.items()}})


def test_one_entry_is_all_surfaces() -> None:
    """Each entry is an option of mitmproxy, a flag with an environment variable, and a member of
    `/cache/info`, with one default and, but for opposites, one help; and there are no others."""
    options = Options()
    flags = {param.name: param for param in start.params if isinstance(param, click.Option)}
    shown = parsed().as_json()
    for option in OPTIONS:
        assert option.name == f"sglang_{option.attribute}"
        options.add_option(option.name, option.type, option.default, option.option_help)
        assert options.default(option.name) == option.default, option.name
        assert option.help.endswith("."), option.name
        assert hasattr(parsed(), option.attribute), option.name
        assert ((option.shown or option.attribute) in shown) is not option.is_secret, option.name
        flag = flags.pop(option.attribute, None)
        assert (flag is not None) is option.has_flag, option.name
        if flag:
            assert flag.opts[-1] == option.long
            assert flag.envvar == f"SGLANG_CACHED_{option.long[2:].replace('-', '_').upper()}"
            words = (option.flag_help or option.help).removesuffix(".")
            assert flag.help and flag.help.startswith(words), option.name
            given = () if flag.multiple else flag.get_default(click.Context(start))
            held = option.read(option.held(given))
            assert repr(held) == repr(option.read(option.default)) or hasattr(held, "named")
    assert set(flags) == {
        "sglang_url", "port", "host", "drain", "drain_accept", "insecure", "web", "scripts", "sets",
    }  # fmt: skip
    assert len(shown) == len([option for option in OPTIONS if not option.is_secret])


def test_addon_has_them_all() -> None:
    """mitmproxy is given the table, and nothing else."""
    added = []

    class Noting(Loader):
        def add_option(self, name: str, *others: Any) -> None:
            added.append((name, *others))

    async def run() -> None:
        with taddons.context(loadcore=False) as context:
            SglangCached().load(Noting(context.master))

    asyncio.run(run())
    assert added == [(o.name, o.type, o.default, o.option_help) for o in OPTIONS]


def test_defaults() -> None:
    """A plain start finds yesterday's cache, and bounds nothing."""
    settings = parsed()
    assert settings.cache_path == Path.home() / ".sglang_cache"
    assert settings.mode is Mode.READWRITE
    assert settings.restart is Restart.SAME
    assert settings.max_entries == settings.max_bytes == settings.ttl == inf
    assert settings.memory is None
    assert settings.poll_seconds == 5.0
    assert settings.key_headers.named == []
    assert b"authorization" in settings.credential_headers
    assert settings.has_folder
    switches = {option.attribute for option in OPTIONS if option.type is bool}
    on = {name for name in switches if getattr(settings, name)}
    assert on == {"express", "collapse", "greedy_reuse", "messages"}


READ: list[tuple[str, object, object]] = [
    ("cache_path", "/var/cache/x", Path("/var/cache/x")),
    ("cache_path", " /var/cache/x ", Path("/var/cache/x")),
    ("cache_path", "~", Path.home()),
    ("cache_path", "~/a b", Path.home() / "a b"),
    ("cache_path", "here", Path.cwd() / "here"),
    *(("mode", mode.value, mode) for mode in Mode),
    ("restart", "new", Restart.NEW),
    ("admin_token", " s3cret ", " s3cret "),
    ("store", " redis://host ", "redis://host"),
    ("credential_headers", " X-User,,cookie", b"x-user"),
    ("poll_seconds", "0.1", 0.1),
    ("poll_seconds", "2.5", 2.5),
    ("poll_seconds", "86400", 86_400.0),
    ("poll_seconds", " 7 ", 7.0),
    ("poll_seconds", "1e2", 100.0),
    ("replay_tokens_per_second", 100_000, 100_000),
    ("max_entries", 7, 7),
    ("max_bytes", "5", 5),
    ("max_bytes", " 20G ", 20 << 30),
    ("max_bytes", "1.5 GiB", 3 << 29),
    ("max_bytes", "10kb", 10 << 10),
    ("memory", "2t", 2 << 40),
    ("memory", "64MB", 64 << 20),
    ("ttl", "90", 90),
    ("ttl", "1.5h", 5400),
    ("ttl", "0.5s", 0.5),
    ("ttl", "30d", 30 * 86_400),
    ("ttl", "2w", 14 * 86_400),
    ("ttl", "5m", 300),
    *((option.attribute, not option.default, not option.default)
      for option in OPTIONS if option.type is bool),
]  # fmt: skip


def test_read() -> None:
    """What is written is taken for what is meant, and changes nothing else."""
    before = parsed()
    for name, written, value in READ:
        settings = parsed(**{name: written})
        found = getattr(settings, name)
        assert value in found if isinstance(found, tuple) else found == value, (name, written)
        changed = {
            option.attribute
            for option in OPTIONS
            if option.attribute != "key_headers"
            and getattr(settings, option.attribute) != getattr(before, option.attribute)
        }
        # Whoever only reads stores nothing.
        assert changed <= {name, *(["mode"] if name == "readonly" else [])}, (name, written)


NUMBER, UNIT = "must be a number from 0.1 to 86400", "must be a number above 0, with a unit"
WRONG: list[tuple[str, tuple[object, ...], str]] = [
    ("cache_path", ("", " ", "\t\n"), "must name a folder"),
    ("mode", ("", "READONLY", " readonly", "read-only", "None"),
     "must be one of readwrite, readonly, refresh, offline, off"),
    ("restart", ("", "again"), "must be one of same, new"),
    ("fsync", ("", "Always", "yes", "1"), "must be one of always, interval, never"),
    ("poll_seconds", ("", "x", "0", "0.09", "-1", "86401", "inf", "-inf", "nan", "5s", "1,5"),
     NUMBER),
    ("replay_tokens_per_second", (-1,), "-1: must be 0 or more"),
    ("max_entries", (-1,), "-1: must be 0 or more"),
    *((name, ("x", "0", "0G", "-1", "1e3", "5 y", "G", "1,5G", "inf", "nan"), UNIT)
      for name in ("max_bytes", "memory", "ttl")),
    ("key_headers", ("x-team,a b",), "a b: is no name of a header"),
    ("credential_headers", ("x:y",), "x:y: is no name of a header"),
]  # fmt: skip


def test_wrong() -> None:
    """What cannot be understood is refused by name, and never taken for something else."""
    for name, values, words in WRONG:
        for value in values:
            with pytest.raises(ValueError, match=f"^sglang_{name}: .*") as caught:
                parsed(**{name: value})
            assert words in str(caught.value), (name, value)


TOGETHER: list[tuple[dict[str, object], str]] = [
    ({"readonly": True, "store": "redis://h"}, "readonly: is for a folder alone"),
    ({"readonly": True, "mode": "refresh"}, "mode: refresh stores, which sglang_readonly forbids"),
    ({"overwrite_cache": True, "readonly": True}, "overwrite_cache: is for a folder of one's own"),
    ({"overwrite_cache": True, "store": "redis://h"}, "is emptied with POST /cache/clear"),
    ({"max_entries": 7, "store": "redis://h"}, "max_entries: is for a folder"),
    ({"max_bytes": "1G", "store": "redis://h"}, "max_bytes: is for a folder"),
]


def test_together() -> None:
    """Nobody counts on a setting that another one makes void."""
    for values, words in TOGETHER:
        with pytest.raises(ValueError, match=f"^sglang_.*{re.escape(words)}"):
            parsed(**values)
    assert parsed(max_entries=7, store="redis://h", cache_path="/x").max_entries == 7


def test_readonly() -> None:
    """Whoever uses the folder of another process stores nothing, and asks nobody if so told."""
    for mode, found in (("readwrite", "readonly"), ("offline", "offline"), ("off", "off")):
        assert parsed(readonly=True, mode=mode).mode == found, mode


def test_folder_beside_a_store() -> None:
    """With a server there is a folder only where one was named."""
    for store, path, has_folder in (
        ("", "~/.sglang_cache", True),
        ("", "/x", True),
        (" redis://host ", "~/.sglang_cache", False),
        ("redis://host", "/x", True),
    ):
        assert parsed(store=store, cache_path=path).has_folder is has_folder, (store, path)


def test_path_does_not_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its folder keeps its cache."""
    settings = parsed(cache_path="here")
    monkeypatch.chdir(tmp_path)
    assert settings.cache_path.is_absolute()
    assert settings.cache_path != tmp_path / "here"


def test_secrets_are_not_shown() -> None:
    """No token and no password gets into a log or `/cache/info`."""
    settings = parsed(admin_token="s3cret", store="redis://:s3cret@host")
    assert "s3cret" not in f"{settings!r} {settings} {settings.as_json()}"


def test_settings_cannot_change() -> None:
    """No request is served under two set-ups."""
    with pytest.raises(AttributeError):
        parsed().quiet = True  # type: ignore[misc]

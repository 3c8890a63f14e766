"""The options and their reading."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from sglang_cached_addon.core.policy import Mode
from sglang_cached_addon.settings import OPTIONS, Settings

DEFAULTS = {option.name: option.default for option in OPTIONS}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_option(option) -> None:
    """mitmproxy would refuse the option, or `--options` show nothing about it."""
    assert option.name.startswith("sglang_")
    assert type(option.default) is option.type
    assert option.help.endswith(".")


def test_names_are_unique() -> None:
    """One option would silently take the place of another."""
    assert len(DEFAULTS) == len(OPTIONS)


def test_defaults() -> None:
    """A plain start would not find yesterday's cache."""
    settings = Settings.parse(DEFAULTS)
    assert settings.cache_path == Path.home() / ".sglang_cache"
    assert settings.quiet is False
    assert settings.express is True
    assert settings.replay_rate == 0
    assert settings.mode is Mode.READWRITE
    assert settings.collapse is True
    assert settings.isolate is False
    assert settings.admin_token == ""
    assert settings.key_headers.named == []
    assert settings.poll == 5.0
    assert settings.fsync == "interval"
    assert settings.max_entries == settings.max_bytes == settings.ttl == inf
    assert settings.memory is None


def test_key_headers() -> None:
    """A header would be in no key, or a misspelled one, without a word."""
    settings = Settings.parse({**DEFAULTS, "sglang_key_headers": " X-Team,,x-lane , "})
    assert settings.key_headers.named == ["x-lane", "x-team"]
    with pytest.raises(ValueError, match=r"sglang_key_headers: a b: is no name of a header"):
        Settings.parse({**DEFAULTS, "sglang_key_headers": "x-team,a b"})


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/var/cache/x", Path("/var/cache/x")),
        (" /var/cache/x ", Path("/var/cache/x")),
        ("~", Path.home()),
        ("~/a b", Path.home() / "a b"),
        ("here", Path.cwd() / "here"),
    ],
)
def test_path(text: str, path: Path) -> None:
    """Answers would go to another folder than the one named."""
    assert Settings.parse({**DEFAULTS, "sglang_cache_path": text}).cache_path == path


def test_path_does_not_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its folder would change its cache, too."""
    settings = Settings.parse({**DEFAULTS, "sglang_cache_path": "here"})
    monkeypatch.chdir(tmp_path)
    assert settings.cache_path.is_absolute()
    assert settings.cache_path != tmp_path / "here"


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_no_path(text: str) -> None:
    """A cache would appear in the current folder."""
    with pytest.raises(ValueError, match="sglang_cache_path"):
        Settings.parse({**DEFAULTS, "sglang_cache_path": text})


SWITCHES = {
    "sglang_quiet": "quiet",
    "sglang_express": "express",
    "sglang_collapse": "collapse",
    "sglang_isolate_by_credential": "isolate",
    "sglang_readonly": "readonly",
    "sglang_overwrite_cache": "overwrite",
}


@pytest.mark.parametrize("option", SWITCHES)
@pytest.mark.parametrize("value", [True, False])
def test_switches(option: str, value: bool) -> None:
    """What was turned off would be on, or the reverse, or another thing with it."""
    settings = Settings.parse({**DEFAULTS, option: value})
    changed = {name: getattr(settings, name) for name in SWITCHES.values()}
    wanted = {name: DEFAULTS[other] for other, name in SWITCHES.items()}
    assert changed == {**wanted, SWITCHES[option]: value}


def test_each_switch_is_tested() -> None:
    """A new switch would not be."""
    assert set(SWITCHES) == {option.name for option in OPTIONS if option.type is bool}


@pytest.mark.parametrize("mode", Mode)
def test_mode(mode: Mode) -> None:
    """A mode could not be chosen, or would be another."""
    assert Settings.parse({**DEFAULTS, "sglang_mode": mode.value}).mode is mode
    (option,) = [option for option in OPTIONS if option.name == "sglang_mode"]
    assert f"`{mode}`" in option.help


@pytest.mark.parametrize("name", ["", "READONLY", " readonly", "read-only", "None"])
def test_unknown_mode(name: str) -> None:
    """A slip would make a cache that is to be left alone writable."""
    with pytest.raises(ValueError, match=r"sglang_mode: .*readwrite, readonly, refresh, offline"):
        Settings.parse({**DEFAULTS, "sglang_mode": name})


def test_admin_token() -> None:
    """A token would stand in a log, or not be the one that was given."""
    settings = Settings.parse({**DEFAULTS, "sglang_admin_token": " s3cret "})
    assert settings.admin_token == " s3cret "
    assert "s3cret" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), ("0.1", 0.1), ("2.5", 2.5), ("86400", 86_400.0), (" 7 ", 7.0), ("1e2", 100.0)],
)
def test_poll(text: str, seconds: float) -> None:
    """Upstream would be asked more or less often than the user wants."""
    assert Settings.parse({**DEFAULTS, "sglang_poll_seconds": text}).poll == seconds


@pytest.mark.parametrize(
    "text", ["", "x", "0", "0.09", "-1", "86401", "inf", "-inf", "nan", "5s", "1,5", "0x10"]
)
def test_no_poll(text: str) -> None:
    """Upstream would be asked without pause, or never again."""
    with pytest.raises(ValueError, match="sglang_poll_seconds"):
        Settings.parse({**DEFAULTS, "sglang_poll_seconds": text})


@pytest.mark.parametrize("rate", [0, 1, 100_000])
def test_replay_rate(rate: int) -> None:
    """Streams would be replayed at another pace."""
    values = {**DEFAULTS, "sglang_replay_tokens_per_second": rate}
    assert Settings.parse(values).replay_rate == rate


def test_negative_replay_rate() -> None:
    """A replay would never end."""
    with pytest.raises(ValueError, match="sglang_replay_tokens_per_second"):
        Settings.parse({**DEFAULTS, "sglang_replay_tokens_per_second": -1})


def test_settings_cannot_change() -> None:
    """A request could be served under two set-ups."""
    with pytest.raises(AttributeError):
        Settings.parse(DEFAULTS).quiet = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("max_bytes", "5", 5),
        ("max_bytes", " 20G ", 20 << 30),
        ("max_bytes", "1.5 GiB", 3 << 29),
        ("max_bytes", "10kb", 10 << 10),
        ("memory", "2t", 2 << 40),
        ("memory", "64MB", 64 << 20),
        ("ttl", "90", 90),
        ("ttl", "1.5h", 5400),
        ("ttl", "30d", 30 * 86_400),
        ("ttl", "2w", 14 * 86_400),
        ("ttl", "5m", 300),
    ],
)
def test_amount(option: str, text: str, value: float) -> None:
    """A limit would be a thousand times what was meant."""
    assert getattr(Settings.parse({**DEFAULTS, f"sglang_{option}": text}), option) == value


@pytest.mark.parametrize("option", ["max_bytes", "memory", "ttl"])
@pytest.mark.parametrize("text", ["x", "0", "0G", "-1", "1e3", "5 y", "G", "1,5G", "inf", "nan"])
def test_no_amount(option: str, text: str) -> None:
    """What cannot be understood would be no limit at all."""
    with pytest.raises(ValueError, match=rf"sglang_{option}: .*above 0, with a unit"):
        Settings.parse({**DEFAULTS, f"sglang_{option}": text})


@pytest.mark.parametrize("text", ["", "Always", "yes", "1"])
def test_no_fsync(text: str) -> None:
    """Somebody would count on a disk that is not synced."""
    with pytest.raises(ValueError, match=r"sglang_fsync: .*always, interval, never"):
        Settings.parse({**DEFAULTS, "sglang_fsync": text})


@pytest.mark.parametrize(("name", "value"), [("max_entries", 7), ("max_bytes", "1G")])
def test_limits_of_a_folder(name: str, value: object) -> None:
    """Somebody would count on a limit that nobody keeps."""
    values = {**DEFAULTS, "sglang_store": "redis://h", f"sglang_{name}": value}
    with pytest.raises(ValueError, match=f"sglang_{name}: is for a folder"):
        Settings.parse(values)
    assert getattr(Settings.parse({**values, "sglang_cache_path": "/x"}), name) < inf


def test_max_entries() -> None:
    """A slip would empty the cache."""
    assert Settings.parse({**DEFAULTS, "sglang_max_entries": 7}).max_entries == 7
    with pytest.raises(ValueError, match="sglang_max_entries: -1"):
        Settings.parse({**DEFAULTS, "sglang_max_entries": -1})


@pytest.mark.parametrize(
    ("mode", "found"), [("readwrite", "readonly"), ("offline", "offline"), ("off", "off")]
)
def test_readonly(mode: str, found: str) -> None:
    """It would store in somebody else's folder, or ask upstream that is not to be asked."""
    values = {**DEFAULTS, "sglang_readonly": True, "sglang_mode": mode}
    assert Settings.parse(values).mode == found
    with pytest.raises(ValueError, match=r"refresh stores, which sglang_readonly forbids"):
        Settings.parse({**values, "sglang_mode": "refresh"})
    with pytest.raises(ValueError, match="not beside sglang_store"):
        Settings.parse({**values, "sglang_store": "redis://h"})


@pytest.mark.parametrize(
    ("store", "path", "has_folder"),
    [
        ("", "~/.sglang_cache", True),
        ("", "/x", True),
        (" redis://host ", "~/.sglang_cache", False),
        ("redis://host", "/x", True),
    ],
)
def test_store(store: str, path: str, has_folder: bool) -> None:
    """A folder would be locked that nobody asked for, or not be there for who did."""
    values = {**DEFAULTS, "sglang_store": store, "sglang_cache_path": path}
    settings = Settings.parse(values)
    assert (settings.store, settings.has_folder) == (store.strip(), has_folder)
    assert "host" not in repr(settings)  # there may be a password in it

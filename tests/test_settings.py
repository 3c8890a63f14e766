"""The options and their reading."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cached_addon.policy import Mode
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
    assert settings.poll == 5.0


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

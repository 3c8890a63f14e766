"""The options and their reading."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ["quiet", "express"])
@pytest.mark.parametrize("value", [True, False])
def test_switches(name: str, value: bool) -> None:
    """Log lines or the fast lane would be on although they were turned off, or the reverse."""
    settings = Settings.parse({**DEFAULTS, f"sglang_{name}": value})
    assert getattr(settings, name) is value


def test_settings_cannot_change() -> None:
    """A request could be served under two set-ups."""
    with pytest.raises(AttributeError):
        Settings.parse(DEFAULTS).quiet = True  # type: ignore[misc]

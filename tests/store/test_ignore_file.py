"""`ignore.toml` of a folder."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sglang_cached_addon.core import ignore_rules
from sglang_cached_addon.store import ignore_file
from sglang_cached_addon.store.files import StoreError
from tests.tables import each

APIS = ("openai-chat",)
GIVEN = ignore_rules.of_option("text=x")


def test_rules_of_both(tmp_path: Path) -> None:
    """The rules of a folder come behind those that were given; there may be none of either."""
    (tmp_path / "ignore.toml").write_text("[claude-code]\n\n[day]\npath = 'text'\nregex = '\\d'\n")

    def names(*args: object) -> list[str] | None:
        found = ignore_file.ignoring(*args, APIS)  # type: ignore[arg-type]
        return [rule.name for rule in found.rules] if found else None

    assert names(GIVEN, tmp_path) == ["rule-1", "claude-code", "day"]
    assert names((), tmp_path) == ["claude-code", "day"]
    assert names(GIVEN, None) == names(GIVEN, tmp_path / "none") == ["rule-1"]
    assert names((), None) is None


@each(
    ("text", "why"),
    [
        (b"[a", "ignore.toml: "),
        (b"\xff", "ignore.toml: "),
        (b"a = 1", r"ignore.toml: \[a\]: write a table"),
        (b"[a]\n[a]", "ignore.toml: "),
        (b"[rule-1]\npath='text'\nregex='x'", "two rules named rule-1"),
    ],
)
def test_broken_files(text: bytes, why: str, tmp_path: Path) -> None:
    """A file that makes no sense is named, with what is wrong."""
    (tmp_path / "ignore.toml").write_bytes(text)
    with pytest.raises(ValueError, match=why):
        ignore_file.ignoring(GIVEN, tmp_path, APIS)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "ignore.toml").mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        ignore_file.ignoring((), tmp_path, APIS)


def test_a_rule_that_takes_too_long(caplog: pytest.LogCaptureFixture) -> None:
    """People are told of it once."""
    found = ignore_file.ignoring(ignore_rules.of_option(r"text=\d"), None, APIS)
    assert found
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert found.reduce("openai-chat", {"text": "1 " * 1_000_000}, []) is None
    assert [record.getMessage().count("rule-1") for record in caplog.records] == [1]

"""How rules are written, and what is said of what is none."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.core import ignore_rules
from sglang_cached_addon.core.ignoring import Rule
from tests.tables import each


def shown(rules: tuple[Rule, ...]) -> list[tuple[Any, ...]]:
    return [tuple(rule.as_json().values()) for rule in rules]


def test_options() -> None:
    """A line has a path and an expression, which may have whatever characters; or it names a rule
    that is built in."""
    text = "messages[*].content=a=b, c \n\nclaude-code\n text = x"
    assert shown(ignore_rules.of_option(text)) == [
        ("rule-1", ["messages[*].content"], "a=b, c ", None),
        (
            "claude-code",
            ["system", "system[*].text"],
            r"(?m)^x-anthropic-billing-header:[^\n]*\n*",
            None,
        ),
        ("rule-2", ["text"], " x", None),
    ]
    assert ignore_rules.of_option("") == ()


@each(
    ("text", "why"),
    [
        ("claude", "neither PATH=REGEX nor a rule that is built in: claude-code"),
        ("=x", "the path is empty"),
        ("a b=x", "is no path"),
        ("a=(", "is no regular expression"),
        ("a=", "matches where there is nothing"),
        ("model=x", "what keeps models and callers apart"),
        ("lora_path[*]=x", "what keeps models and callers apart"),
        ("claude-code\nclaude-code", "two rules named claude-code"),
    ],
)
def test_bad_options(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ignore_rules.of_option(text)


DOCS = Path(__file__).parents[2] / "docs" / "ignore.md"


def test_what_users_read() -> None:
    """What is shown to users as rules are rules."""
    text = DOCS.read_text()
    (file,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    rules = ignore_rules.of_file(tomllib.loads(file), ["anthropic-messages"])
    assert [rule.name for rule in rules] == ["claude-code", "day", "session"]
    (line,) = re.findall(r"--ignore '(.*)'\n", text)
    (rule,) = ignore_rules.of_option(line)
    assert list(rule.regex.spans(b"Today is Monday, 2026-01-02.")) == [(0, 27)]


RULE = {"path": "text", "regex": "x"}


def test_files() -> None:
    """A table for each rule, under its name; one that is built in has nothing below its name."""
    document = {"claude-code": {}, "d.1": RULE, "e": {**RULE, "path": ["a", "b"], "apis": ["one"]}}
    assert shown(ignore_rules.of_file(document, ["one", "two"]))[1:] == [
        ("d.1", ["text"], "x", None),
        ("e", ["a", "b"], "x", ["one"]),
    ]


@each(
    ("document", "why"),
    [
        ({"a": 1}, r"\[a\]: write a table"),
        ({"a": {}}, r"\[a\]: 'a' is neither"),
        ({"claude-code": RULE}, "built in: write nothing below"),
        ({"a": {"path": "text"}}, "no regex"),
        ({"a": {"regex": "x"}}, "no path"),
        ({"a": {**RULE, "path": []}}, "no path"),
        ({"a": {**RULE, "path": [1]}}, "no path"),
        ({"a": {**RULE, "regex": "("}}, "no regular expression"),
        ({"a": {**RULE, "path": "a..b"}}, "is no path"),
        ({"a": {**RULE, "only": ["one"]}}, "'only' is not known"),
        ({"a": {**RULE, "apis": ["three"]}}, "no API is called 'three': one, two"),
        ({"a": {**RULE, "apis": "one"}}, "no apis"),
        ({'a"b': RULE}, "no name of a rule"),
        ({"é": RULE}, "no name of a rule"),
        ({"a" * 101: RULE}, "no name of a rule"),
        ({"": RULE}, "no name of a rule"),
    ],
)
def test_bad_files(document: dict[str, Any], why: str) -> None:
    """What is wrong is said, and of which rule."""
    with pytest.raises(ValueError, match=why):
        ignore_rules.of_file(document, ["one", "two"])

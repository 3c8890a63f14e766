"""The rules of what is left out of keys, as users write them: in `--ignore`, and in `ignore.toml`.

Pure: knows no files. What is wrong is a ValueError that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sglang_cached_addon.core.ignoring import APART, Rule
from sglang_cached_addon.core.json_path import Path
from sglang_cached_addon.core.regex import Regex

CLAUDE_CODE = "claude-code"

BUILT_IN: Mapping[str, tuple[tuple[str, ...], str]] = {
    # As it is seen: `x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli;
    # cch=fa690;`, in a block of its own or before the rest. Its digits are others in each request.
    CLAUDE_CODE: (("system", "system[*].text"), r"(?m)^x-anthropic-billing-header:[^\n]*\n*"),
}
"""The rules that need only be named: their paths, and their expressions."""

MAX_NAME = 100
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def make(name: str, paths: Iterable[str], regex: str, apis: Iterable[str] = ()) -> Rule:
    """Raises ValueError for what is no rule."""
    if not (0 < len(name) <= MAX_NAME and _NAME.issuperset(name)):
        raise ValueError(f"{name!r} is no name of a rule: 1 to {MAX_NAME} of A-Z a-z 0-9 . _ -")
    parsed = tuple(Path.parse(path) for path in paths)
    for path in parsed:
        if path.steps[0] in APART:
            why = "nothing is left out of what keeps models and callers apart"
            raise ValueError(f"{path.text}: {why}")
    return Rule(name, parsed, Regex(regex), frozenset(apis))


def built_in(name: str) -> Rule:
    """Raises ValueError where there is none of that name."""
    if name not in BUILT_IN:
        raise ValueError(
            f"{name!r} is neither PATH=REGEX nor a rule that is built in: {', '.join(BUILT_IN)}"
        )
    return make(name, *BUILT_IN[name])


def of_option(text: str) -> tuple[Rule, ...]:
    """The rules of `--ignore`, each on a line of its own: PATH=REGEX, or the name of one that is
    built in. Those without a name are `rule-1` and so on. Raises ValueError."""
    rules: list[Rule] = []
    for line in filter(str.strip, text.splitlines()):
        path, is_rule, regex = line.partition("=")
        unnamed = f"rule-{1 + sum(rule.name.startswith('rule-') for rule in rules)}"
        rules.append(make(unnamed, [path.strip()], regex) if is_rule else built_in(line.strip()))
    return unique(rules)


def unique(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules; raises ValueError where two have one name."""
    found: dict[str, Rule] = {}
    for rule in rules:
        if rule.name in found:
            raise ValueError(f"there are two rules named {rule.name}: name one of them otherwise")
        found[rule.name] = rule
    return tuple(found.values())


def of_file(document: Mapping[str, Any], apis: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of a parsed `ignore.toml`: a table for each, under its name. `apis` are the names
    that there are. Raises ValueError."""
    return tuple(_of_table(name, table, frozenset(apis)) for name, table in document.items())


def _of_table(name: str, table: Any, apis: frozenset[str]) -> Rule:
    try:
        if not isinstance(table, dict):
            raise ValueError(f"write a table: [{name}], and below it path and regex")
        if unknown := table.keys() - {"path", "regex", "apis"}:
            raise ValueError(f"{sorted(unknown)[0]!r} is not known; there are path, regex and apis")
        if not table:
            return built_in(name)
        if name in BUILT_IN:
            raise ValueError("this rule is built in: write nothing below its name")
        path, regex = table.get("path"), table.get("regex")
        paths = [path] if isinstance(path, str) else _texts("path", path)
        if not isinstance(regex, str):
            raise ValueError("there is no regex, as text")
        only = _texts("apis", table["apis"]) if "apis" in table else []
        if unknown := set(only) - apis:
            raise ValueError(f"no API is called {sorted(unknown)[0]!r}: {', '.join(sorted(apis))}")
        return make(name, paths, regex, only)
    except ValueError as e:
        raise ValueError(f"[{name}]: {e}") from None


def _texts(name: str, value: Any) -> list[str]:
    if not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
        raise ValueError(f"there is no {name}, as text or as a list of texts")
    return value

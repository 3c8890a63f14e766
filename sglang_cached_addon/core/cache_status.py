"""What the cache has said of an answer, read from the answer's header fields, in words for people.

Pure. `outcome` writes these fields; what other caches have written into them is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_MEMBER = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*")+')
_PARAMETER = re.compile(r'(?:[^";]|"(?:[^"\\]|\\.)*")+')
"""One of a list in a structured field (RFC 9651), and one of its parameters."""

_WORDS = {"key": "key {}", "fwd-status": "the server answered {}", "detail": "{}"}
"""Parameters with a value, in words."""


def in_words(fields: Mapping[str, str]) -> list[str]:
    """What the cache says, the most important first; nothing where it has said nothing. `fields`
    finds the fields of the answer by their names, in any case."""
    kind, said = fields.get("X-Cache", ""), fields.get("Cache-Status", "")
    members = (member.strip() for member in _MEMBER.findall(said))
    ours = next((member for member in members if member.startswith("sglang-cached;")), "")
    if not (kind and ours):
        return []
    words = [kind, *(_words(parameter.strip()) for parameter in _PARAMETER.findall(ours)[1:])]
    if age := fields.get("Age"):
        words.append(f"{age} s old")
    if places := fields.get("X-Cache-Sample"):
        words.append(f"samples {places}")
    return list(filter(None, words))


def _words(parameter: str) -> str:
    """A parameter in words; empty for what `X-Cache` says as well."""
    name, has_value, value = parameter.partition("=")
    if name in ("hit", "fwd"):
        return ""
    return _WORDS.get(name, f"{name} {{}}").format(value.strip('"')) if has_value else name

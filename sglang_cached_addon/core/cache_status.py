"""What the cache has said of an answer, read from the answer's header fields, in words for people.

Pure. `outcome` writes these fields; what other caches have written into them is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_MEMBER = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*")+')
_PARAMETER = re.compile(r'(?:[^";]|"(?:[^"\\]|\\.)*")+')
"""One of a list in a structured field (RFC 9651), and one of its parameters."""

_WORDS = {"fwd-status": "the server answered {}", "detail": "{}", "stored": "stored now"}
"""Parameters that are told in other words, in their order."""


def in_words(fields: Mapping[str, str]) -> list[str]:
    """What the cache says, the most important first; nothing where it has said nothing. `fields`
    finds the fields of the answer by their names, in any case."""
    kind, said = fields.get("X-Cache", ""), fields.get("Cache-Status", "")
    members = (member.strip() for member in _MEMBER.findall(said))
    ours = next((member for member in members if member.startswith("sglang-cached;")), "")
    if not (kind and ours):
        return []
    pairs = [parameter.strip().partition("=") for parameter in _PARAMETER.findall(ours)[1:]]
    found = {name: value.strip('"') for name, _, value in pairs}
    known, key = {kind.lower(), "fwd", *_WORDS}, found.pop("key", "")
    words = [kind, *(text.format(found[name]) for name, text in _WORDS.items() if name in found)]
    words += [f"{name} {value}".strip() for name, value in found.items() if name not in known]
    if age := fields.get("Age"):
        words.append(f"{age} s old")
    if places := fields.get("X-Cache-Sample"):
        words.append(f"samples {places}")
    return [*words, *([f"key {key}"] if key else [])]

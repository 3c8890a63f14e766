"""Which entries are wanted: decided for a whole entry, and guessed from the bytes of a line.

Pure. A journal has many lines and most are not wanted, so a line is first looked at as bytes: what
`hits` and `may_be` let pass is then looked at for what it says. They let pass too much, never too
little.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import orjson

from sglang_cached_addon.catalog.entry import Entry, Models
from sglang_cached_addon.catalog.query import NotFound, Query
from sglang_cached_addon.core.keys import FORMAT_VERSION, PREFIX
from sglang_cached_addon.core.places import Used


@dataclass(frozen=True, slots=True)
class Sieve:
    """What somebody looks for."""

    query: Query
    models: Collection[bytes] | None = None
    """How the keys of the models begin that are wanted; None for all."""
    other_than: bytes = b""
    """How the keys of a model begin that is not wanted; empty for none."""
    used: Used | None = None
    """Whether a run has used it; None where no run is asked for."""

    # A whole entry

    def takes(self, entry: Entry) -> bool:
        """Whether an entry is wanted, but for its text."""
        query = self.query
        if not self.may_be(entry.key) or (query.api and entry.api != query.api):
            return False
        if not query.since <= entry.newest <= query.until:
            return False
        return self.used is None or self.used.has(entry.key, entry.samples)

    def may_be(self, key: bytes) -> bool:
        """Whether an entry of this key may be wanted."""
        model = key[:PREFIX]
        if self.other_than:
            return model != self.other_than
        return self.models is None or model in self.models

    def has_text(self, entry: Entry) -> bool:
        """Whether the text stands in the prompt, or in one of the samples."""
        if not self.query.text:
            return True
        has = re.compile(re.escape(self.query.text), re.IGNORECASE).search
        return any(map(has, entry.asked)) or any(has(entry.said(s)) for s in entry.samples)

    # The bytes of lines

    def hits(self, lines: bytes) -> Iterator[int]:
        """Where in some lines something stands that a wanted one has, from the end on. In each
        line, where nothing is known of a wanted one."""
        if self.query.text:
            return self._text_hits(lines)
        if self.models is not None and len(self.models) == 1:
            (model,) = self.models
            return _found(lines, START + model.hex().encode())
        if self.other_than or (self.used and self.used.pools is not None):
            return reversed([m.start() for m in _HEAD.finditer(lines) if self._may_head(m[1])])
        return _found(
            lines, b'"dialect":"%b"' % self.query.api.encode() if self.query.api else b"\n"
        )

    def _may_head(self, digits: bytes) -> bool:
        """Whether an entry whose key begins with these digits may be wanted."""
        if self.used and self.used.pools is not None:
            return int(digits[2 * PREFIX :], 16) in self.used.pools
        return bytes.fromhex(digits[: 2 * PREFIX].decode()) != self.other_than

    def _text_hits(self, lines: bytes) -> Iterator[int]:
        text = self.query.text
        plain = _longest_plain(text)
        if len(plain) >= min(3, len(text)):
            return _found(lines.lower(), _escaped(plain).lower())
        return reversed([match.start() for match in _in_any_case(text).finditer(lines)])


START = b'{"v":%d,"key":"' % FORMAT_VERSION
"""How a line of the journal begins."""

_HEAD = re.compile(re.escape(START) + rb"([0-9a-f]{31})")
"""With as many digits of the key as name a pool within a run."""


def _found(lines: bytes, needle: bytes) -> Iterator[int]:
    end = len(lines)
    while (at := lines.rfind(needle, 0, end)) >= 0:
        yield at
        end = lines.rfind(b"\n", 0, at) + 1


def _longest_plain(text: str) -> str:
    """The longest part of a text without letters that have other cases beyond ASCII."""
    plain = "".join(c if c.isascii() or c.upper() == c.lower() else "\0" for c in text)
    return max(plain.split("\0"), key=len)


def _escaped(text: str) -> bytes:
    """A text as it stands in JSON."""
    return orjson.dumps(text)[1:-1]


_SIGMAS = {"\N{GREEK SMALL LETTER SIGMA}", "\N{GREEK SMALL LETTER FINAL SIGMA}"}
"""Two forms of one letter, of which neither is the other in another case."""


def _in_any_case(text: str) -> re.Pattern[bytes]:
    """Finds a text in JSON, whatever the case of each character."""
    parts = []
    for char in text:
        forms = {form for form in (char, char.lower(), char.upper()) if len(form) == 1}
        forms |= _SIGMAS if forms & _SIGMAS else set()
        parts.append(b"|".join(re.escape(_escaped(form)) for form in sorted(forms)))
    return re.compile(b"".join(b"(?:%b)" % part for part in parts))


def sieve(query: Query, models: Models, used: Used | None) -> Sieve:
    """What a query looks for. Raises NotFound for the name of a model that nobody knows."""
    if query.model == "all":
        return Sieve(query, used=used)
    if query.model == "current":
        return Sieve(query, () if models.current is None else (models.current,), used=used)
    if query.model == "other":
        return Sieve(query, other_than=models.current or b"", used=used)
    return Sieve(query, models_named(query.model, models), used=used)


def models_named(name: str, models: Models) -> frozenset[bytes]:
    """How the keys begin of all models of this name, or of the one that this is of in hexadecimal.
    Raises NotFound where there is none."""
    found = frozenset(prefix for prefix, known in models.names.items() if known == name)
    if not found and re.fullmatch(r"[0-9a-f]{16}", name):
        return frozenset([bytes.fromhex(name)])
    if not found:
        raise NotFound(f"no model was met whose name is {name}")
    return found

"""Text that somebody has sent, made fit to be shown: in one line, without control characters, and
of a bounded length.
"""

from __future__ import annotations

MAX_LINE = 4000
"""How many characters a line of the log has at most."""

MAX_PATH = 200
"""How many characters of a path are shown."""


def printable(text: str, limit: int) -> str:
    """The text with escapes in place of characters that are not visible, or that move others
    about."""
    if len(text) > limit:
        text = f"{text[:limit]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def path(target: str) -> str:
    """The path of a request target, without the query, which may have a secret."""
    return printable(target.partition("?")[0], MAX_PATH)

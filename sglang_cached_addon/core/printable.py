"""Text that somebody has sent, made fit to be shown: in one line, without control characters, and
of a bounded length.
"""

from __future__ import annotations

MAX_LINE = 4000
"""Characters of a line of the log."""

MAX_PATH = 200


def printable(text: str, limit: int) -> str:
    """With escapes in place of what is no visible character, or moves others about."""
    if len(text) > limit:
        text = f"{text[:limit]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def path(target: str) -> str:
    """That of a request target: what follows it may be a secret."""
    return printable(target.partition("?")[0], MAX_PATH)

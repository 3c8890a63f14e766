"""Events of streams that differ in their text alone, and need not be parsed.

Pure: bytes in, a text out.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson


class Frame(NamedTuple):
    """The data of a chunk before and behind its text. What has them, too, and just a string
    between them, is the same chunk with another text."""

    before: bytes
    behind: bytes

    def text(self, said: bytes) -> str:
        """The text of such a chunk; empty where it is empty, or another chunk."""
        before, behind = self
        if not (said.startswith(before) and said.endswith(behind)):
            return ""
        try:
            text = orjson.loads(said[len(before) : -len(behind)])
        except ValueError:
            return ""
        return text if type(text) is str else ""

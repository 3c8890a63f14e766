"""Regular expressions whose time is bounded by the length of the text: those of RE2.

RE2 has neither backreferences nor look-around, and no text makes it backtrack; what it takes for
each byte may differ a hundredfold all the same. Pure: the clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Clock = Callable[[], float]
"""The seconds that this thread has used the processor for."""

Span = tuple[int, int]

_TRIAL = 64 << 10
"""So many bytes of a longer text are searched first, to see how long that takes."""

_MOST = 5e-3
"""The most seconds for that. It takes 0.15 ms where nothing is odd, and then 2 ms for a MiB."""


class Regex:
    """One expression."""

    def __init__(self, text: str) -> None:
        """Raises ValueError, which says what is wrong with it."""
        import re2  # for those who have rules

        options = re2.Options()
        options.log_errors = False
        options.never_capture = True  # where groups begin and end takes more time
        try:
            self._regex: Any = re2.compile(text, options)
        except (re2.error, UnicodeEncodeError) as e:
            why = e.args[0].decode() if isinstance(e.args[0], bytes) else str(e)
            raise ValueError(
                f"{text!r} is no regular expression of RE2, which has no look-around and no "
                f"backreferences: {why}"
            ) from None
        if self._regex.fullmatch(b""):
            raise ValueError(f"{text!r} matches where there is nothing: write what is there")
        self.text = text

    def spans(self, text: bytes) -> Iterator[Span]:
        """Where it matches something in a text in UTF-8."""
        for match in self._regex.finditer(text):
            span: Span = match.span()
            if span[0] < span[1]:
                yield span

    def is_slow(self, text: bytes, clock: Clock) -> bool:
        """Whether it takes many times as long as usual for a long text: as its beginning shows."""
        if len(text) <= _TRIAL:
            return False
        end = clock() + _MOST
        for _ in self.spans(text[:_TRIAL]):
            if clock() > end:
                return True
        return clock() > end

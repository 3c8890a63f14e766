"""Deltas of `/v1/responses` that come one after the other, and differ in their text alone.

Pure. Their numbers rise by one each time.
"""

from __future__ import annotations

from sglang_cached_addon.dialects import judging
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.frame import Frame

_NUMBER = "sequence_number"


class Run:
    """Deltas of one text."""

    def __init__(self, first: Json, said: bytes = b"") -> None:
        """`said` is the first one as it came, where `repeats` is asked about those behind it."""
        self.first = first
        self.texts: list[str] = [first["delta"]]
        self._frame = self._framed(said)

    def adds(self, event: Json) -> bool:
        """Takes the next event if it is another of these deltas. Gives whether it was."""
        like = {**event, "delta": self.first["delta"]}
        if _NUMBER in self.first and type(event.get(_NUMBER)) is int:
            like[_NUMBER] = event[_NUMBER] - len(self.texts)
        if judging.dump(like) != judging.dump(self.first):
            return False
        self._take(event["delta"])
        return True

    def repeats(self, said: bytes) -> bool:
        """As `adds`, of the data of an event that is not parsed, where that can be told so."""
        text = self._frame.text(said) if self._frame else ""
        if text:
            self._take(text)
        return bool(text)

    def _take(self, text: str) -> None:
        self.texts.append(text)
        if self._frame:
            old, new = (self._numbered(len(self.texts) - k) for k in (1, 0))
            self._frame = Frame(*(part.replace(old, new) for part in self._frame))

    def _numbered(self, k: int) -> bytes:
        """The number of the delta at this place of the run, as it stands in its data."""
        return b'"%b":%d,' % (_NUMBER.encode(), self.first[_NUMBER] + k)

    def _framed(self, said: bytes) -> Frame | None:
        """The frame of the delta that comes next."""
        delta = b'"delta":' + judging.dump(self.first["delta"])
        if type(self.first.get(_NUMBER)) is not int or said.count(delta) != 1:
            return None
        before, behind = said.replace(self._numbered(0), self._numbered(1)).split(delta)
        parts = before + b'"delta":', behind
        is_numbered = sum(part.count(self._numbered(1)) for part in parts) == 1
        return Frame(*parts) if is_numbered else None

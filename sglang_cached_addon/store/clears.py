"""How often pools were cleared, by whichever proxy: a number that is part of their names.

Pure. Who has not heard of a clear yet goes on with the former names, which nobody else reads any
more: nothing that was cleared comes back. Clears are numbered; each of a few fields has the number
of the last one of its kind, so that two who know different ones agree on the higher numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from sglang_cached_addon.core.keys import PREFIX

ALL = "all"
_MODEL, _OTHERS = "m:", "o:"


def field(model: bytes | None, *, others: bool = False) -> str:
    """The kind of a clear: of all, of what belongs to a model (as a key begins), or of all
    others."""
    if model is None:
        return ALL
    return f"{_OTHERS if others else _MODEL}{model.hex()}"


def meaning(field: str) -> tuple[bytes | None, bool]:
    """The model of such a field, and whether its others are meant. Raises ValueError."""
    if field == ALL:
        return None, False
    if not field.startswith((_MODEL, _OTHERS)):
        raise ValueError(f"not a kind of clear: {field!r}")
    return bytes.fromhex(field[2:]), field.startswith(_OTHERS)


class Clears:
    """What is known of them."""

    def __init__(self, numbers: Mapping[str, int] | None = None) -> None:
        self.numbers = dict(numbers or {})
        """By kind."""
        self._of: dict[bytes, int] = {}

    @property
    def last(self) -> int:
        """The highest number there is."""
        return max(self.numbers.values(), default=0)

    def of(self, key: bytes) -> int:
        """The number of the last clear that this pool was in."""
        model = key[:PREFIX]
        found = self._of.get(model)
        if found is None:
            mine = {field(None), field(model)}
            found = max(
                (
                    number
                    for kind, number in self.numbers.items()
                    if kind in mine or (kind.startswith(_OTHERS) and kind[2:] != model.hex())
                ),
                default=0,
            )
            self._of[model] = found
        return found

    def take(self, theirs: Mapping[str, int]) -> list[str]:
        """Takes over what others know; the kinds of which there were new ones."""
        new = [kind for kind, number in theirs.items() if number > self.numbers.get(kind, 0)]
        self.numbers |= {kind: theirs[kind] for kind in new}
        self._of.clear()
        return new

"""Which pools were cleared when, by whichever proxy: a number that is part of their names.

Pure. A proxy that has not heard of a clear yet goes on with the former names, which nobody else
reads any more: so nothing that was cleared comes back. Clears are numbered; of each kind only the
number of the last one is kept, so that two proxies that know of different clears agree on the
higher numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from sglang_cached_addon.core.keys import PREFIX

ALL = "all"
_MODEL, _OTHERS = "m:", "o:"


def kind_of(model: bytes | None, *, others: bool = False) -> str:
    """The kind of a clear: of all, of what belongs to a model (as a key begins), or of all
    others."""
    if model is None:
        return ALL
    return f"{_OTHERS if others else _MODEL}{model.hex()}"


def meaning(kind: str) -> tuple[bytes | None, bool]:
    """The model of a kind, and whether all others are meant. Raises ValueError."""
    if kind == ALL:
        return None, False
    if not kind.startswith((_MODEL, _OTHERS)):
        raise ValueError(f"not a kind of clear: {kind!r}")
    return bytes.fromhex(kind[2:]), kind.startswith(_OTHERS)


def concerns(kind: str, key: bytes) -> bool:
    """Whether a clear of this kind removes the pool of this key."""
    model, others = meaning(kind)
    return model is None or key.startswith(model) is not others


class Clears:
    """The clears that a proxy knows of."""

    def __init__(self, numbers: Mapping[str, int] | None = None) -> None:
        self.numbers = dict(numbers or {})
        """The number of the last clear of each kind."""
        self._of: dict[bytes, int] = {}
        """The answers of `of`, by model."""

    @property
    def last(self) -> int:
        """The highest number there is."""
        return max(self.numbers.values(), default=0)

    def of(self, key: bytes) -> int:
        """The number of the last clear that the pool of this key was in."""
        model = key[:PREFIX]
        if model not in self._of:
            found = (n for kind, n in self.numbers.items() if concerns(kind, key))
            self._of[model] = max(found, default=0)
        return self._of[model]

    def take(self, theirs: Mapping[str, int]) -> list[str]:
        """Takes what others know; returns the kinds of which there were new clears."""
        new = [kind for kind, number in theirs.items() if number > self.numbers.get(kind, 0)]
        self.numbers |= {kind: theirs[kind] for kind in new}
        self._of.clear()
        return new

"""How two texts differ, for people."""

from __future__ import annotations

from sglang_cached_addon.core.word_diff import CONTEXT, MOST, word_diff
from tests.tables import each

WORDS = [f"w{i}" for i in range(3 * MOST)]
LONG = " ".join(WORDS)

DIFFS: dict[str, tuple[str, str, str]] = {
    "nothing": ("a b", "a b", "a b"),
    "nothing at all": ("", "", ""),
    "a word": ("the sea is salty here", "the sea is deep here",
               "the sea is [-salty-]{+deep+} here"),
    "more": ("a b", "a b c", "a b{+ c+}"),
    "less": ("a b c", "a c", "a [-b -]c"),
    "all": ("a", "b", "[-a-]{+b+}"),
    "from nothing": ("", "a b", "{+a b+}"),
    "spaces": ("a b", "a  b", "a[- -]{+  +}b"),
    "far from the beginning": (
        f"{LONG} end", f"{LONG} other",
        f"[...] {' '.join(WORDS[-CONTEXT:])} [-end-]{{+other+}}",
    ),
    "far from each other": (
        f"a {' '.join(WORDS[:100])} b", f"c {' '.join(WORDS[:100])} d",
        f"[-a-]{{+c+}} {' '.join(WORDS[:CONTEXT])} [...] "
        f"{' '.join(WORDS[100 - CONTEXT : 100])} [-b-]{{+d+}}",
    ),
}  # fmt: skip


@each("case", DIFFS)
def test_word_diff(case: str) -> None:
    """What has gone and what has come is shown, with the words around."""
    one, other, expected = DIFFS[case]
    assert " ".join(word_diff(one, other).split()) == " ".join(expected.split())


def test_bounded() -> None:
    """Long texts that have nothing in common are compared as far as people read."""
    found = word_diff(LONG, " ".join(word.upper() for word in WORDS))
    assert found.endswith("[...]")
    assert len(found) < len(LONG)

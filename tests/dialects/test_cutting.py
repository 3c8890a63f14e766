"""Where the text of the first tokens of an answer ends."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.dialects import cutting
from tests.tables import each

ASCII = [(2, 1), (4, 2), (4, 3), (6, 5)]


@each(
    ("text", "marks", "count", "found"),
    [
        ("abcdefgh", ASCII, 1, "ab"),
        ("abcdefgh", ASCII, 2, "abcd"),
        ("abcdefgh", ASCII, 3, "abcd"),
        ("abcdefgh", ASCII, 4, None),  # two tokens came together
        ("abcdefgh", ASCII, 5, "abcdef"),
        ("abcdefgh", ASCII, 6, None),
        ("abcdefgh", [], 1, None),
        # What comes next is no ASCII: a part of it may have been held back.
        ("ab\N{LATIN SMALL LETTER E WITH ACUTE}d", [(2, 1), (3, 2)], 1, None),
        ("ab\N{LATIN SMALL LETTER E WITH ACUTE}d", [(2, 1), (3, 2)], 2,
         "ab\N{LATIN SMALL LETTER E WITH ACUTE}"),
        # ... also where an event in between brought no text.
        ("ab\N{HIRAGANA LETTER A}", [(2, 1), (2, 2), (3, 4)], 1, None),
        ("ab\N{HIRAGANA LETTER A}", [(2, 1), (2, 2)], 2, None),
        # Further behind it does not matter.
        ("abc\N{HIRAGANA LETTER A}", [(2, 1), (3, 2)], 1, "ab"),
        ("ab", [(2, 1), (2, 2)], 1, "ab"),
    ],
)  # fmt: skip
def test_text_at(text: str, marks: Any, count: int, found: str | None) -> None:
    """A boundary is taken where an event ended, and surely nothing was held back."""
    assert cutting.text_at(text, marks, count) == found


@each(("versions", "found"), [
    ([{"version": "v", "start": 0, "end": 9}], [{"version": "v", "start": 0, "end": 3}]),
    ([], []), (None, None), ([1], [1]),
])  # fmt: skip
def test_with_end(versions: Any, found: Any) -> None:
    assert cutting.with_end(versions, 3) == found


def test_others() -> None:
    """A field that asks for nothing is none."""
    assert not cutting.has_others({"a": 1, "b": None, "c": False}, ("a",))
    assert cutting.has_others({"a": 1, "b": 0}, ("a",))


PIECES = [b"a", b" b", b" ", b"\n", "\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), b"\xc3",
          b"\xa9", b" \xe2\x82", b"c\xe2", b"\xac", "\N{CJK UNIFIED IDEOGRAPH-4E16}".encode(),
          b"\xe4\xb8", b"\x96", b"\xff", b""]  # fmt: skip
"""The bytes of tokens, of which some are parts of characters."""
REPLACED = "\N{REPLACEMENT CHARACTER}"


def printed(ids: Sequence[int]) -> tuple[list[str], list[str]]:
    """What a server prints of these tokens, one more at a time: while it goes on, and when it ends
    there. Text that ends within a character is held back, but for whole words before that."""
    begun, going_on, ended = "", [], []
    context = held = 0
    for end in range(1, len(ids) + 1):
        read, known = (
            b"".join(PIECES[k] for k in ids[context:stop]).decode(errors="replace")
            for stop in (end, held)
        )
        news = read[len(known) :]
        ended.append(begun + news)
        if news and not news.endswith(REPLACED):
            begun, context, held = begun + news, held, end
            going_on.append(begun)
        else:
            is_wide = len(news) > 1 and "\u4e00" <= news[-2] <= "\u9fff"
            going_on.append(begun + news[: -1 if is_wide else news.rfind(" ") + 1])
    return going_on, ended


def test_what_a_server_prints() -> None:
    """Wherever a boundary is taken of a stream, the text is that of an answer that ends there."""
    dice, known = random.Random(1), 0
    for _ in range(4000):
        weights = [9, 9, 3, 2, *[1] * 11] if dice.random() < 0.7 else [1] * 15
        ids = dice.choices(range(len(PIECES)), weights, k=dice.randint(2, 12))
        going_on, ended = printed(ids)
        events = [k for k in range(1, len(ids)) if dice.random() < 0.8]  # others come together
        marks = [(len(going_on[k - 1]), k) for k in events]
        for count in range(1, len(ids)):
            found = cutting.text_at(ended[-1], marks, count)
            known += found is not None
            assert found in (None, ended[count - 1]), (ids, marks, count)
    assert known > 5000

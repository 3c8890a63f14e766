"""What was sent to the proxy, as it is shown."""

from __future__ import annotations

from sglang_cached_addon.core.printable import MAX_PATH, path, printable
from tests.tables import each


@each(
    ("target", "shown"),
    [
        ("/generate", "/generate"),
        ("/v1/models?api_key=secret", "/v1/models"),
        ("/a?b?c", "/a"),
        ("/gr\xfc\xdfe/\u4f60\u597d", "/gr\xfc\xdfe/\u4f60\u597d"),
        ("/a\n[Cache hit] /b", "/a\\n[Cache hit] /b"),
        ("/\x1b[2J\x1b]0;x\x07", "/\\x1b[2J\\x1b]0;x\\x07"),
        ("/a\r\t\x00\x7f\x9b", "/a\\r\\t\\x00\\x7f\\x9b"),
        ("/\u202egpj.exe\u2028", "/\\u202egpj.exe\\u2028"),
        ("/\udcff", "/\\udcff"),
        ("/" + "a" * 1000, "/" + "a" * (MAX_PATH - 1) + "..."),
    ],
)
def test_path(target: str, shown: str) -> None:
    """No control characters and no queries are shown."""
    assert path(target) == shown


def test_escapes_are_not_cut() -> None:
    """A text that is cut says so."""
    assert printable("\n" * 5, 3) == "\\n\\n\\n..."

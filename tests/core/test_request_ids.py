"""Request ids."""

from __future__ import annotations

from sglang_cached_addon.core.request_ids import Ids, is_for, of_client, of_fetch, shown
from tests.tables import each


@each(
    ("value", "is_sane"),
    [
        (b"a", True), (b"7f0c-1.2:3/4+5=@~_", True), (b"a" * 128, True), (b"", False),
        (b"a" * 129, False), (b"a b", False), (b"a, b", False), (b'"a"', False), (b"a\x1b", False),
        (b"\xc3\xa9", False), (b"a\n", False), (b"<a>", False),
    ],
)  # fmt: skip
def test_of_client(value: bytes, is_sane: bool) -> None:
    """A sane id is taken as it is, and any other is none."""
    assert of_client({b"x-request-id": value}) == (value if is_sane else b"")
    assert of_client({}) == b""


def test_ids() -> None:
    """Each is new, is sane, and does not begin with another one."""
    ids, others = Ids("ab"), Ids("cd")
    found = [each.next() for _ in range(300) for each in (ids, others)]
    assert len(set(found)) == 600
    assert len({len(name) for name in found}) == 1
    assert all(of_client({b"x-request-id": name}) for name in found)


def test_shown() -> None:
    """Upstream is shown an id that is of one fetch alone, in place of the client's."""
    fields = ((b"a", b"1"), (b"X-Request-ID", b"mine"), (b"x-request-id", b"too"))
    fetch = of_fetch(b"mi.ne", "7")
    assert shown(fields, fetch) == ((b"a", b"1"), (b"X-Request-Id", b"mi.ne.7"))
    assert (is_for(fetch, b"mi.ne"), is_for(fetch, b"mi")) == (True, False)
    assert shown(fields, of_fetch(b"", "7")) == fields

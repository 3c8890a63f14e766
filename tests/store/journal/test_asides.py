"""The files beside a journal."""

from __future__ import annotations

from pathlib import Path

from sglang_cached_addon.store.journal.asides import scrub

KEY, OTHER = b"k" * 32, b"o" * 32


def line(key: bytes, text: str) -> bytes:
    return b'{"v":4,"key":"%b","text":"%b"' % (key.hex().encode(), text.encode())


def test_scrub(tmp_path: Path) -> None:
    """The lines of a key are gone from all files beside the journal, whole or torn, and all others
    are left; the journal is not touched."""
    journal = tmp_path / "cache.jsonl"
    kept = line(OTHER, "b") + b"\n"
    for name in ("cache.jsonl", "cache.jsonl.torn", "cache.jsonl.broken", "cache.jsonl.v3"):
        (tmp_path / name).write_bytes(line(KEY, "a")[:100] + b"\n" + kept + line(KEY, "c"))
    (tmp_path / "cache.jsonl.original").write_bytes(b'{"a":1}\n')
    (tmp_path / "state.json").write_bytes(line(KEY, "a"))
    before = (tmp_path / "cache.jsonl.original").stat()
    scrub(journal, KEY)
    for name in ("cache.jsonl.torn", "cache.jsonl.broken", "cache.jsonl.v3"):
        assert (tmp_path / name).read_bytes() == kept
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "cache.jsonl.original").stat() == before
    assert b'"a"' in journal.read_bytes() and b'"a"' in (tmp_path / "state.json").read_bytes()
    scrub(journal, KEY)

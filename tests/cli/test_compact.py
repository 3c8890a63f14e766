"""`sglang-cached compact`; what it shares with `verify` is tested there."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from sglang_cached_addon.cli import main
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.journal.lines import encode


def test_compact(tmp_path: Path) -> None:
    """The room of what is no more is had back without a proxy."""
    path = tmp_path / "cache.jsonl"
    old = encode(Addition(b"a" * 32, "chat", b'{"q":1}', [Sample(b'{"x":1}', 1.0, 0.5, 3)]))
    new = [Sample(b'{"x":2}', 2.0, 0.5, 3)]
    path.write_bytes(old + encode(Addition(b"a" * 32, "chat", b"", new)))
    before = path.stat().st_size
    result = CliRunner().invoke(main, ["compact"], env={"SGLANG_CACHED_CACHE_PATH": str(tmp_path)})
    assert result.exit_code == 0, result.output
    left = encode(Addition(b"a" * 32, "chat", b'{"q":1}', new))
    assert path.read_bytes() == left
    assert f"{before} bytes before, {len(left)} bytes after" in result.output
    result = CliRunner().invoke(main, ["compact", "--json", "--cache-path", str(tmp_path)])
    sizes = {"bytes_before": len(left), "bytes_after": len(left)}
    assert json.loads(result.output) == {"path": str(path), **sizes}

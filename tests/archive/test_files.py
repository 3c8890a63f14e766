"""A file is there whole, or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sglang_cached_addon.archive.files import written


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    """A file has its name when all is written, and a former one is there until then."""
    path = tmp_path / "file"
    with written(str(path)) as out:
        out.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyboardInterrupt), written(str(path)) as out:
        out.write(b"two")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe is written to, and stays one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with written(str(pipe)) as out:
        out.write(b"one")
    reader.join()
    assert (read, pipe.is_fifo()) == ([b"one"], True)

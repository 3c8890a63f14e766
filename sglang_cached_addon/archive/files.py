"""A file that is written whole or not at all: aside, and given its name in the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sglang_cached_addon.store.files import private, sync_folder


@contextmanager
def written(name: str) -> Iterator[IO[bytes]]:
    """Gives what to write to: `-` is the standard output, and so is what is there and no file, as a
    pipe. A file is its owner's alone, and there when all is written. Raises OSError."""
    path = Path(name)
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.exists() and not path.is_file():
        with open(path, "wb") as pipe:
            yield pipe
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(aside, "wb", opener=private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync_folder(path.absolute().parent)

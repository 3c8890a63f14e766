"""The files beside a journal, in which lines are kept that are of no use: torn, broken, or others'.

For a thread. Whoever deletes an entry for good wants nothing of it there, either.
"""

from __future__ import annotations

from pathlib import Path

from sglang_cached_addon.store.files import replace


def scrub(journal: Path, key: bytes) -> None:
    """Removes the lines of a key, as far as they say that they are of it. Raises OSError."""
    name = b'"key":"%b"' % key.hex().encode()
    for path in journal.parent.glob(f"{journal.name}.*"):
        if path.suffix == ".new":
            continue
        with open(path, "rb") as file:
            if any(name in line for line in file):
                file.seek(0)
                replace(path, b"".join(line for line in file if name not in line))

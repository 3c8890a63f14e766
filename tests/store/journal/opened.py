"""An open journal for the tests of this folder, what to write to it, and how to hold it up."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.journal.lines import OtherVersion, parse, seal
from tests.conftest import until

A, B, C = (letter * 32 for letter in (b"a", b"b", b"c"))
Line = tuple[bytes, str, tuple[Sample, ...]]


class Opened:
    """A journal, and what was in it."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[Line] = []
        self.slots: list[int] = []
        self.journal = Journal(folder)
        try:
            self.loaded = self.journal.load()
        except BaseException:
            self.journal.close()
            raise
        for raw in self.journal.path.read_bytes().splitlines(keepends=True):
            with suppress(OtherVersion, ValueError, KeyError, TypeError):
                head, samples = parse(raw)
                self.lines.append((head.key, head.dialect, tuple(samples)))
                self.slots.append(head.slot)

    def append(self, line: Line, content: bytes = b"", *, slot: int | None = None) -> bool:
        """Behind what is there, if nothing else is said."""
        at = self.journal.index.end(line[0]) if slot is None else slot
        return self.journal.append(Addition(line[0], line[1], content, line[2]), at)

    def settle(self) -> None:
        """Waits until the file has it all."""
        until(lambda: self.journal.pending == 0)


@contextmanager
def opened(folder: Path) -> Iterator[Opened]:
    found = Opened(folder)
    try:
        yield found
    finally:
        found.journal.close()


def line(key: bytes, *answers: bytes, dialect: str = "chat") -> Line:
    samples = (Sample(answer, 1700000000.25, 0.5, 3 + n) for n, answer in enumerate(answers))
    return key, dialect, tuple(samples)


def at(one: Line, when: float) -> Line:
    return one[0], one[1], tuple(sample._replace(stored_at=when) for sample in one[2])


def write(folder: Path, *lines: Line) -> bytes:
    """The bytes of a journal with these lines."""
    with opened(folder) as journal:
        for one in lines:
            journal.append(one, b'{"q":"\xc3\xa9"}')
    return (folder / "cache.jsonl").read_bytes()


def read(folder: Path) -> list[Line]:
    with opened(folder) as journal:
        return journal.lines


def pool(journal: Opened, key: bytes) -> list[int]:
    """The samples of a key, by their numbers."""
    found = journal.journal.read(key, waits=True)
    return [json.loads(sample.answer)["x"] for sample in found or ()]


def numbers(folder: Path) -> list[int]:
    return [json.loads(s.answer)["x"] for _, _, samples in read(folder) for s in samples]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of_a(key: bytes) -> bool:
    return key == A


GOOD: dict[str, Any] = {
    "v": FORMAT_VERSION,
    "key": C.hex(),
    "slot": 0,
    "dialect": "chat",
    "at": 1.5,
    "seconds": 0.5,
    "tokens": [1],
    "answers": [{"x": 1}],
}


def clear_some(journal: Journal, is_cleared: Callable[[bytes], bool]) -> Future[None]:
    """Clears some keys, all in one go."""
    before = journal.mark
    for key in filter(is_cleared, list(journal.index)):
        journal.forget(key)
    return journal.purge(before, is_cleared)


def changed(**fields: Any) -> bytes:
    """A line with other fields; None leaves one out."""
    record = {k: v for k, v in {**GOOD, **fields}.items() if v is not None}
    # The first version had no sum.
    return orjson.dumps(record) if fields.get("v") == 1 else seal(orjson.dumps(record))[:-1]


BROKEN = {
    "blank": b"",
    "spaces": b"   ",
    "words": b"what is this",
    "cut": changed()[:-5],
    "two": changed() + changed(),
    "nul": b"\0" * 100,
    "not-utf8": changed().replace(b"chat", b"ch\xfft"),
    "carriage": b"\r",
    "json-null": b"null",
    "json-number": b"1",
    "json-text": b'"v"',
    "json-list": b"[1,2]",
    "json-empty": b"{}",
    "deep": b"[" * 5000 + b"]" * 5000,
    "no-sum": changed()[:-18] + b"}",
    "wrong-sum": changed()[:-10] + b'00000000"}',
    "other-case": changed()[:-10] + changed()[-10:].upper(),
    "space-behind": changed() + b" ",
    "old-with-wrong-sum": changed().replace(b'"v":4', b'"v":1'),
    "newer-with-wrong-sum": changed().replace(b'"v":4', b'"v":5'),
    "older": changed(v=0),
    "newer": changed(v=FORMAT_VERSION + 1),
    "version-text": changed(v=str(FORMAT_VERSION)),
    "version-list": changed(v=[1]),
    "no-version": changed(v=None),
    "no-key": changed(key=None),
    "key-number": changed(key=5),
    "key-short": changed(key="aa"),
    "key-long": changed(key=C.hex() * 2),
    "key-not-hex": changed(key="x" * 64),
    "no-dialect": changed(dialect=None),
    "no-time": changed(at=None),
    "time-list": changed(at=[]),
    "time-words": changed(at="now"),
    "no-seconds": changed(seconds=None),
    "no-tokens": changed(tokens=None),
    "tokens-number": changed(tokens=1),
    "tokens-list": changed(tokens=[[]]),
    "no-slot": changed(slot=None),
    "slot-text": changed(slot="0"),
    "slot-far": changed(slot=1 << 40),
    "time-nan": changed(at="nan"),
    "dialect-number": changed(dialect=7),
}


SEALED = {
    "answers-text": changed(answers=["x"]),
    "answers-null": changed(answers=[None]),
    "answers-a-text": changed(answers="x"),
    "more-tokens": changed(tokens=[1, 2]),
    "no-answers": changed(answers=None),
}
"""Which nobody would write, with a sum that is right: not looked at before they are asked for."""


class Held:
    """Keeps the writer from its work, so that much is queued when it goes on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._go = threading.Event()
        entered = threading.Event()
        real = os.fstat

        def wait(handle: int) -> os.stat_result:
            if threading.current_thread().name == "journal":
                entered.set()
                assert self._go.wait(60)
            return real(handle)

        patch.setattr(os, "fstat", wait)
        # It looks whether the file is still there.
        assert entered.wait(60)

    def release(self) -> None:
        self._go.set()


def fail(*args: object, **more: object) -> None:
    raise OSError(28, "No space left on device")


def break_rename(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "replace", fail)


def break_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fsync", fail)

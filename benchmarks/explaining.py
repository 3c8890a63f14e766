"""What it takes to find the nearest stored calls: `python -m benchmarks.explaining FOLDER`.

Makes a journal of a million chats in the folder, unless there is one, and prints one JSON object:
CPU seconds to make the index (`build`), its bytes an entry (`bytes`), and milliseconds to find what
is nearest to a call that differs in a setting, or at the end, in the middle or at the begin of its
question (`median`, `worst`), and how often that was the call that was changed (`found`, of 1).
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from benchmarks import stub
from benchmarks.entries import FINGERPRINT
from sglang_cached_addon import dialects
from sglang_cached_addon.core import keys
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.nearest import nearest
from sglang_cached_addon.store.journal.lines import encode
from sglang_cached_addon.store.journal.sketches import Sketches

ENTRIES = 1_000_000
ASKED = 25
"""So many calls are changed, in each way."""

DIALECT = dialects.installed()["POST", "/v1/chat/completions"]
SYSTEM = "You answer questions about anything in one sentence, and say so where you do not know."


def chats(count: int) -> Iterator[dict[str, Any]]:
    """Chats of random words, with one of a few settings each."""
    chance = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(20_000)]
    for _ in range(count):
        question = f"Question: {' '.join(chance.choices(words, k=25))}?"
        yield {
            "model": "m",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question},
            ],
            "temperature": chance.choice([0.0, 0.2, 0.7, 1.0]),
            "max_tokens": chance.choice([64, 256]),
        }


def write_journal(folder: Path, count: int) -> None:
    """Makes `cache.jsonl` in the folder."""
    digester = keys.Digester(FINGERPRINT, DIALECT.name)
    sample = Sample(orjson.dumps(stub.generated(1)), 1795408031.0, 0.018, len(stub.TOKENS))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "cache.jsonl", "wb") as file:
        for chat in chats(count):
            content = keys.canonical(chat)
            file.write(encode(Addition(digester.key(content), DIALECT.name, content, [sample])))


def changed(chat: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Calls that differ from one in one place each."""
    yield {**chat, "temperature": 0.5}
    system, user = chat["messages"]
    words = user["content"].split()
    middle = len(words) // 2
    for text in (
        f"{user['content']} Please.",
        " ".join([*words[:middle], "other", *words[middle + 1 :]]),
        f"Well. {user['content']}",
    ):
        yield {**chat, "messages": [system, {**user, "content": text}]}


def measure(folder: Path, count: int = ENTRIES) -> dict[str, float]:
    """Makes what is missing, and measures."""
    if not (folder / "cache.jsonl").exists():
        write_journal(folder, count)
    for path in folder.glob("cache.sketches*"):
        path.unlink()
    every = max(1, count // ASKED)
    chosen = [chat for number, chat in enumerate(chats(count)) if number % every == 0]
    digester = keys.Digester(FINGERPRINT, DIALECT.name)
    with closing(Sketches(folder / "cache.jsonl")) as sketches:
        started = time.process_time()
        while sketches.alike(DIALECT.name, b"{}", 60.0).share < 1:
            pass
        build = time.process_time() - started
        took, found = [], 0
        for chat in chosen:
            for other in changed(chat):
                begun = time.perf_counter()
                content = keys.canonical(other)
                near = nearest(content, b"", sketches.alike(DIALECT.name, content, 60.0).calls)
                took.append((time.perf_counter() - begun) * 1000)
                found += near[0].key == digester.key(keys.canonical(chat))
    return {
        "build": build,
        "bytes": (folder / "cache.sketches").stat().st_size / count,
        "median": median(took),
        "worst": max(took),
        "found": found / len(took),
    }


if __name__ == "__main__":
    print(orjson.dumps(measure(Path(sys.argv[1]))).decode())

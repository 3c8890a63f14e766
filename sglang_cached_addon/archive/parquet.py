"""The samples of records as a table in a Parquet file, a row for each.

What has no fixed shape, calls and answers, is text with JSON in it. Needs `pyarrow`, an extra.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import IO, Any

from sglang_cached_addon.archive.record import Record

GROUP_ROWS, GROUP_BYTES = 10_000, 32 << 20
"""So many rows, or bytes of text, are written at once, and are in memory until then."""

INSTALL = "Parquet needs pyarrow: pip install 'sglang-cached[parquet]'"


class NoPyarrow(Exception):
    """The package is missing; the message says how it is installed."""


def load() -> tuple[Any, Any]:
    """The package and its part for Parquet. Raises `NoPyarrow`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise NoPyarrow(INSTALL) from None
    return pyarrow, pyarrow.parquet


def write(records: Iterable[Record], out: IO[bytes]) -> None:
    """Writes a whole file. Raises `NoPyarrow` and OSError."""
    arrow, parquet = load()
    text, texts = arrow.string(), arrow.list_(arrow.string())
    schema = arrow.schema(
        {
            "key": text,
            "api": text,
            "model": text,
            "fingerprint": text,
            "call": text,
            "texts": texts,
            "sample": arrow.int32(),
            "text": text,
            "finish_reason": text,
            "tokens": arrow.int64(),
            "seconds": arrow.float64(),
            "stored_at": arrow.timestamp("us", tz="UTC"),
            "runs": texts,
            "answer": text,
        }
    )
    with parquet.ParquetWriter(out, schema) as writer:
        for group in _groups(row for record in records for row in _rows(record)):
            writer.write_table(arrow.Table.from_pylist(group, schema))


def _rows(record: Record) -> Iterator[dict[str, Any]]:
    pool = record.pool
    for number, (sample, told) in enumerate(zip(pool.samples, record.told, strict=True)):
        yield {
            "key": pool.key.hex(),
            "api": pool.dialect,
            "model": record.model or None,
            "fingerprint": record.fingerprint or None,
            "call": pool.content.decode() or None,
            "texts": list(record.texts),
            "sample": number,
            "text": told.text,
            "finish_reason": told.finish_reason,
            "tokens": sample.tokens,
            "seconds": sample.seconds,
            "stored_at": datetime.fromtimestamp(sample.stored_at, UTC),
            "runs": list(told.runs),
            "answer": sample.answer.decode(),
        }


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group, size = list[dict[str, Any]](), 0
    for row in rows:
        group.append(row)
        size += len(row["answer"]) + len(row["call"] or "") + sum(map(len, row["texts"]))
        if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group

"""Results as text for people and as JSON for machines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.bounds import Bound
from benchmarks.results import Results, Row


def figure(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def columns(lines: Iterable[Sequence[str]], left: int) -> str:
    """A plain table; the first `left` columns are text, the others are figures."""
    table = list(lines)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def head(facts: Mapping[str, str]) -> str:
    return columns(facts.items(), 2)


def table(results: Results) -> str:
    """Every row with every target, and how many times its reference it is."""
    lines: list[Sequence[str]] = [("row", "target", "median", "min", "max", "unit", "ratio", "to")]
    for row in results.rows.values():
        for i, target in enumerate(row.values):
            ratio = row.ratio(target)
            lines.append(
                (
                    "" if i else row.name,
                    target,
                    *map(figure, (row.median(target), row.low(target), row.high(target))),
                    row.unit,
                    "-" if ratio is None else f"{ratio:.2f}",
                    row.reference,
                )
            )
    return columns(lines, 2)


def verdicts(bounds: Iterable[Bound], rows: dict[str, Row]) -> str:
    """Which targets hold."""
    lines = [("target", "of", "against", "found", "bound", "")]
    for bound in bounds:
        found = bound.found(rows)
        lines.append(
            (
                bound.name,
                bound.target,
                bound.reference,
                "-" if found is None else figure(found),
                f"{bound.sign} {_limit(bound, rows)}",
                bound.verdict(found),
            )
        )
    return columns(lines, 3)


def _limit(bound: Bound, rows: dict[str, Row]) -> str:
    if bound.by == "ratio":
        return f"{bound.limit:g} x"
    return f"{bound.limit:g} {rows[bound.row].unit if bound.row in rows else 'more'}"


def as_json(facts: Mapping[str, str], results: Results, bounds: Iterable[Bound]) -> dict[str, Any]:
    """All of it, with every value of every round."""
    return {
        "head": dict(facts),
        "rows": [
            {
                "name": row.name,
                "unit": row.unit,
                "reference": row.reference,
                "targets": {
                    target: {
                        "values": [value for _, value in sorted(values.items())],
                        "median": row.median(target),
                        "min": row.low(target),
                        "max": row.high(target),
                        "ratio": row.ratio(target),
                    }
                    for target, values in row.values.items()
                },
            }
            for row in results.rows.values()
        ],
        "bounds": [
            {
                "name": bound.name,
                "row": bound.row,
                "target": bound.target,
                "reference": bound.reference,
                "by": bound.by,
                "bound": f"{bound.sign} {bound.limit:g}",
                "found": (found := bound.found(results.rows)),
                "verdict": bound.verdict(found),
            }
            for bound in bounds
        ],
        "failures": results.failures,
    }

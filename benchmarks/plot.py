"""The results as an SVG: a group of bars for each row, each group on a scale of its own.

Pure. Colours follow the reader's light or dark mode, also where the file is an `<img>`.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from benchmarks.report import figure
from benchmarks.results import Row

ROWS = {
    "hit-small p50": "Hit, 100-byte prompt, p50: less is better",
    "hit-small-rate": "Hits/s, 100-byte prompt, 32 connections: more is better",
    "hit-16k p50": "Hit, 16 KB prompt, p50: less is better",
    "hit-16k-rate": "Hits/s, 16 KB prompt, 32 connections: more is better",
    "miss p50": "Miss, p50: less is better",
    "streams-64": "Events/s of 64 streams: more is better",
    "memory": "Peak memory: less is better",
}
"""What is drawn of a run, and how it is called."""

WIDTH, LABEL, BAR, VALUE = 720, 120, 460, 130
STEP, GAP = 20, 34
CLASSES = {"sglang-cached": "ours", "nginx": "a", "mitmdump": "b", "direct": "c"}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.ours { fill: #1a7f37; } .a { fill: #6e9bd1; } .b { fill: #c69a5a; } .c { fill: #9aa2ab; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .ours { fill: #3fb950; } .a { fill: #5a86bb; } .b { fill: #a98550; } .c { fill: #7d858e; }
}
"""


def svg(rows: dict[str, Row], caption: str) -> str:
    """The picture; `caption` says when and where."""
    parts: list[str] = []
    y = 10
    for name, title in ROWS.items():
        if name in rows:
            y = _group(parts, rows[name], title, y)
    parts.append(_text(0, y + 16, caption))
    height = y + 26
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">\n'
        f"<title>Benchmark of sglang-cached</title>\n<style>{STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _group(parts: list[str], row: Row, title: str, y: int) -> int:
    """Adds the bars of a row; gives where the next may begin."""
    parts.append(_text(0, y + 13, title, "title"))
    y += STEP
    most = max(map(row.median, row.values))
    for target in _sorted(row.values):
        value = row.median(target)
        width = max(1.0, BAR * value / most) if most else 1.0
        parts.append(_text(0, y + 13, target))
        parts.append(
            f'<rect class="{CLASSES.get(target, "a")}" x="{LABEL}" y="{y + 2}" '
            f'width="{width:.1f}" height="{STEP - 5}" rx="2"/>'
        )
        parts.append(_text(LABEL + width + 8, y + 13, f"{figure(value)} {row.unit}"))
        y += STEP
    return y + GAP - STEP


def _sorted(targets: Iterable[str]) -> list[str]:
    order = list(CLASSES)
    return sorted(targets, key=lambda t: order.index(t) if t in order else len(order))


def _text(x: float, y: float, text: str, css: str = "label") -> str:
    return f'<text x="{x:.1f}" y="{y}" class="{css}">{escape(text)}</text>'

"""`sglang-cached diff`: the same calls, and where their answers differ.

Reads folders, beside whoever has them. Exit codes: 0, with `--exit-code` 1 if anything differs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from sglang_cached_addon.cli.frame import cache_path_option, prints_json
from sglang_cached_addon.cli.output import Output, shown_text
from sglang_cached_addon.cli.reach import journal_of

if TYPE_CHECKING:
    from sglang_cached_addon.archive.comparing import Answered, Compared, Side

PROMPT = 300
"""How many characters of what was asked are shown."""


@click.command()
@prints_json
@cache_path_option
@click.option("--models", "what", flag_value="models", help="A and B are models of --cache-path.")
@click.option("--runs", "what", flag_value="runs", help="A and B are runs of --cache-path.")
@click.option("--limit", default=20, show_default=True, help="So many that differ are shown.")
@click.option("--exit-code", is_flag=True, help="End with 1 if anything differs.")
@click.argument("a")
@click.argument("b")
@click.pass_context
def diff(
    ctx: click.Context,
    output: Output,
    cache_path: str,
    what: str | None,
    limit: int,
    exit_code: bool,
    a: str,
    b: str,
) -> None:
    """Compare what two folders A and B answer to the same calls; or two models, or two runs."""
    from sglang_cached_addon.archive.comparing import compare

    counts: Counter[str] = Counter()
    one, other = (_side(name, what, cache_path) for name in (a, b))
    found = _counted(compare(one, other, _tell), counts)
    if output.is_json:
        output.print(orjson.dumps(_as_json(one)).decode() for one in found)
    else:
        output.print(_shown(found, limit))
    summary = {name: counts[name] for name in ("same", "differs", "only_a", "only_b")}
    lines = [
        f"{summary['same']} calls have the same answers, {summary['differs']} have others",
        f"{summary['only_a']} calls are only in {a}, {summary['only_b']} only in {b}",
    ]
    output.show(summary, lines)
    if exit_code and counts.total() > counts["same"]:
        ctx.exit(1)


def _side(name: str, what: str | None, cache_path: str) -> Side:
    """What an argument names; raises click's error for what is not there."""
    from sglang_cached_addon.archive.comparing import Side
    from sglang_cached_addon.core.places import pool_of

    if what is None:
        return Side(journal_of(name, "A or B"))
    journal = journal_of(cache_path)
    if what == "models":
        models = _models(journal.parent, name)
        return Side(journal, lambda key: key[:8] in models)
    places = _places(journal.parent, name)
    return Side(journal, lambda key: bool(places[pool_of(key)]), lambda key: places[pool_of(key)])


def _models(folder: Path, name: str) -> set[bytes]:
    """How the keys begin of the models that have a name, or whose fingerprint or keys begin so."""
    from sglang_cached_addon.core import keys
    from sglang_cached_addon.store.state import StateFile

    known: dict[str, str] = StateFile(folder, is_ours=False).load().get("models", {})
    prefixes = {fingerprint: keys.prefix(fingerprint) for fingerprint in known}
    found = {key for fingerprint, key in prefixes.items() if known[fingerprint] == name}
    if not found and name:
        found = {
            key
            for fingerprint, key in prefixes.items()
            if fingerprint.startswith(name) or key.hex().startswith(name)
        }
    if not found:
        names = ", ".join(sorted(set(known.values()))) or "none"
        raise click.BadParameter(f"no model {name}; known: {names}", param_hint="A or B")
    return found


def _places(folder: Path, name: str) -> Any:
    """What a run has taken."""
    from sglang_cached_addon.store import run_lines, run_log

    known = run_lines.read(folder / run_log.NAME)
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise click.BadParameter(f"no run {name}; known: {names}", param_hint="A or B")
    return known[name].places


def _tell(lines: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{f'{lines} lines read' if lines else ''}\r")
        sys.stderr.flush()


def _counted(found: Iterable[Compared], counts: Counter[str]) -> Iterator[Compared]:
    """What is not the same, while all is counted."""
    for one in found:
        if not counts:
            _tell(0)  # all is read
        counts[one.verdict] += 1
        if one.verdict != "same":
            yield one


def _as_json(one: Compared) -> dict[str, Any]:
    def side(has: Answered | None) -> dict[str, Any] | None:
        if has is None:
            return None
        samples = [{"text": said.text, "finish_reason": said.end or None} for said in has.samples]
        return {"key": has.key.hex(), "samples": samples}

    call = one.call
    return {
        "verdict": one.verdict,
        "api": call.dialect,
        "call": orjson.Fragment(call.content),
        "a": side(one.a),
        "b": side(one.b),
    }


def _shown(found: Iterable[Compared], limit: int) -> Iterator[str]:
    left = limit
    for one in found:
        if one.a and one.b and left > 0:
            left -= 1
            yield from _lines(one.a, one.b)


def _lines(a: Answered, b: Answered) -> Iterator[str]:
    from sglang_cached_addon.core.word_diff import word_diff

    yield f"{a.key.hex()[:32]}  {a.dialect}  {shown_text(_asked(a), PROMPT)}"
    for place, (one, other) in enumerate(zip(a.samples, b.samples, strict=False)):
        if one != other:
            text = word_diff(one.text, other.text)
            ends = f"  ({one.end} / {other.end})" if one.end != other.end else ""
            yield f"  sample {place}: {shown_text(text, 10 * PROMPT)}{ends}"
    if len(a.samples) != len(b.samples):
        yield f"  {len(a.samples)} and {len(b.samples)} samples"
    yield ""


def _asked(call: Answered) -> str:
    """What a call asks, in words: the last that is said to the model."""
    from sglang_cached_addon import dialects
    from sglang_cached_addon.dialects.display import GENERAL, display_of

    named = {each.name: display_of(each) for each in dialects.installed().values()}
    body = orjson.loads(call.content)
    passages = named.get(call.dialect, GENERAL).passages(body)
    said = [passage.text for passage in passages if not passage.heading.startswith("tools")]
    return said[-1] if said else call.content.decode()

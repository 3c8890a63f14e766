"""The command: `python -m benchmarks`, from the root of the repository.

Prints the table, and writes `results.json` and `results.svg`. A missed bound is a finding,
not an error: the exit code is 1 only when something did not run.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import orjson

from benchmarks import machine, packages, plot, report
from benchmarks.bench import Bench, Sizes
from benchmarks.bounds import bounds
from benchmarks.measuring import Measuring


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often (default: 5)")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument(
        "--entries", type=int, default=1_000_000, help="of the largest cache (default: 1000000)"
    )
    parser.add_argument(
        "--rows",
        default="*",
        metavar="PATTERN",
        help="by the first word of their names: 'hit-*', or 'miss,streams-64'",
    )
    parser.add_argument(
        "--quick", action="store_true", help="1 round of 1 second, at most 20000 entries"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("results"), metavar="FOLDER"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, 1
        options.entries = min(options.entries, 20_000)
    if options.rounds < 1 or options.seconds < 1 or options.entries < 1000:
        parser.error("at least 1 round, 1 second and 1000 entries")
    return options


def main() -> int:
    options = parse_options()
    # Ends the servers on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    patterns = options.rows.split(",")
    sizes = Sizes(10, options.entries, 100, min(100_000, options.entries))
    limits = bounds(sizes.few, sizes.many, sizes.little, sizes.large)
    wrk, nginx = packages.find("wrk", "wrk"), packages.find("nginx", "nginx-light")
    facts = machine.facts(wrk, nginx, options.rounds, options.seconds)
    with tempfile.TemporaryDirectory(prefix="sglang-cached-bench-") as work:
        measuring = Measuring(
            wrk,
            options.seconds,
            lambda name: any(fnmatch(name, pattern) for pattern in patterns),
            Path(work),
        )
        bench = Bench(measuring, sizes, nginx_path=nginx, work=Path(work))
        for turn in range(options.rounds):
            bench.round(turn)
    results = measuring.results
    if not results.rows and not results.failures:
        print(f"no row is called {options.rows}", file=sys.stderr)
        return 1
    print(report.head(facts), report.table(results), sep="\n\n")
    print("", report.verdicts(limits, results.rows), sep="\n")
    for failure in results.failures:
        print(f"failed: {failure}")
    options.out.mkdir(parents=True, exist_ok=True)
    data = orjson.dumps(report.as_json(facts, results, limits), option=orjson.OPT_INDENT_2)
    (options.out / "results.json").write_bytes(data + b"\n")
    caption = f"{facts['date']}, {facts['cpus']}, {facts['rounds']}"
    (options.out / "results.svg").write_text(plot.svg(results.rows, caption))
    return 1 if results.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

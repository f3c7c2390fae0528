"""``python3 -m benchmarks``: make the environments on first use, measure everything in one interleaved run, write what came out."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from convmem import bootstrap


def main() -> int:
    """Run, and return the exit code."""
    bootstrap.enter("test", ["-m", "benchmarks", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: under 3 minutes once the environments are made")
    parser.add_argument("--no-peers", action="store_true", help="convmem and the drivers alone")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="systems whose name or store has this word; repeatable")
    parser.add_argument("--out", type=Path, default=bootstrap.CHECKOUT / "benchmarks" / "results", help="where table, lines and charts go")
    options = parser.parse_args()

    from benchmarks.report import draw, table
    from benchmarks.run import FULL, QUICK, Run, chosen

    plan = QUICK if options.quick else FULL
    began = time.monotonic()
    terminal = sys.stderr.isatty()

    def say(line: str) -> None:
        stamp = f"[{time.monotonic() - began:5.0f} s] {line}"
        print(f"\r\x1b[K{stamp[:140]}" if terminal else stamp, end="" if terminal else "\n", file=sys.stderr, flush=True)

    systems = chosen(options.only, peers=not options.no_peers)
    results = asyncio.run(Run(plan, systems, say).run())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(table(results, plan), encoding="utf-8")
    (options.out / "lines.jsonl").write_text("\n".join(results.lines()) + "\n", encoding="utf-8")
    for name, chart in draw(results, plan).items():
        (options.out / name).write_text(chart, encoding="utf-8")
    say(f"done: {options.out / 'table.md'}\n")
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

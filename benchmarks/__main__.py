"""``python3 -m benchmarks``: make the environments on first use, measure everything in one interleaved run, write what came out."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from convmem import bootstrap


def main() -> int:
    """Run, and return the exit code: 1 when something was not measured, or grew that may not grow."""
    bootstrap.enter("test", ["-m", "benchmarks", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: under 3 minutes once the environments are made")
    parser.add_argument("--no-peers", action="store_true", help="convmem and the drivers alone")
    parser.add_argument("--all-peers", action="store_true", help="other ways to use the peers too, and more of them")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="systems whose name or store has this word; repeatable")
    parser.add_argument("--out", type=Path, default=bootstrap.CHECKOUT / "benchmarks" / "results", help="where table, lines and charts go")
    parser.add_argument("--publish", action="store_true", help="measure nothing: put the last run's figures and charts into the docs")
    parser.add_argument(
        "--soak", type=float, nargs="?", const=30.0, metavar="MINUTES", help="mixed traffic instead, for 30 minutes or so many"
    )
    options = parser.parse_args()

    from benchmarks import publish, soak
    from benchmarks.progress import Bar
    from benchmarks.report import draw, table
    from benchmarks.run import FULL, QUICK, Run, chosen

    options.out.mkdir(parents=True, exist_ok=True)
    if options.publish:
        publish.publish(options.out / "lines.jsonl", bootstrap.CHECKOUT / "docs")
        return 0
    with Bar() as bar:
        if options.soak is not None:
            return asyncio.run(soak.run(options.soak, options.only, options.out, bar))
        plan = QUICK if options.quick else FULL
        systems = chosen(options.only, peers=not options.no_peers, every=options.all_peers)
        results = asyncio.run(Run(plan, systems, bar).run())
        (options.out / "table.md").write_text(table(results, plan), encoding="utf-8")
        (options.out / "lines.jsonl").write_text("\n".join(results.lines()) + "\n", encoding="utf-8")
        for name, chart in draw(results, plan).items():
            (options.out / name).write_text(chart, encoding="utf-8")
        bar(f"done: {options.out / 'table.md'}")
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())

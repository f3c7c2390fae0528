"""Puts what a run found into the page about performance: tables between two marks, and charts beside the other pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import goals, report
from benchmarks.run import Plan, Results
from benchmarks.systems import DIRECT, SERVED

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PAGE, IMAGES = "explanation/performance.md", "images"
_PREFIX = "performance-"
_SHOWN = ("redis", "postgresql", "sqlite")
_BUSY = 1000


def publish(lines: Path, docs: Path) -> None:
    """Replace figures and charts by those of a run.

    Args:
        lines: What it wrote.
        docs: The folder of the documentation.
    """
    results = Results.of_lines(lines.read_text(encoding="utf-8").splitlines())
    plan = Plan(**results.facts["plan"])
    for old in (docs / IMAGES).glob(f"{_PREFIX}*.svg"):
        old.unlink()
    drawn = report.draw(results, plan)
    busy = max(messages for messages in plan.busy_sizes if messages <= _BUSY)
    wanted = [*(f"{store}-{what}.svg" for store in _SHOWN for what in ("growth", busy)), "uvicorn.svg"]
    charts = [name for name in wanted if name in drawn]
    for name in charts:
        (docs / IMAGES / f"{_PREFIX}{name}").write_text(drawn[name], encoding="utf-8")
    page = docs / PAGE
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{figures(results, plan, charts)}\n{END}{after}", encoding="utf-8")


def figures(results: Results, plan: Plan, charts: list[str]) -> str:
    """Return what stands between the marks."""
    facts = results.facts
    versions = {name: version for found in facts["versions"].values() for name, version in sorted(found.items())}
    rounds = max((len(rounds) for rounds in results.cells.values()), default=0)
    parts = [
        (f"One run of {rounds} round{'s' * (rounds != 1)}" if rounds else "Counted, and not timed yet,")
        + f" on {facts['processors']} x {facts['processor']}, {facts['system'].partition('-with')[0]}, servers and "
        f"clients on the same machine, which had a load of {facts['load'][0]} before: "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". LlamaIndex pins an older asyncpg.",
        "### Against its goals",
        goals.table(results, plan),
    ]
    for store, title in zip(_SHOWN, ("Redis", "PostgreSQL", "SQLite"), strict=True):
        systems = report.measured(results, store)
        if not systems:
            continue
        parts += [f"### {title}"]
        pictures = [f"![{_says(name, title)}](../{IMAGES}/{_PREFIX}{name})" for name in charts if name.startswith(store)]
        if pictures:
            words = f"Turns a second of {plan.sessions} conversations at once, as a multiple of those of `convmem Store`:"
            parts += [*pictures, words, report.ratios(results, plan, store)]
        if any(system.name in results.stored for system in systems):
            parts += ["Round trips: bytes sent / received a turn, and bytes stored a message:", report.wire(results, plan, systems)]
        parts += ["Where another library is ahead of `convmem Conversation unread before`, and by how much:", ahead(results, plan, store)]
    if report.measured(results, SERVED):
        pictures = [f"![{_says(name, 'Redis')}](../{IMAGES}/{_PREFIX}{name})" for name in charts if name == "uvicorn.svg"]
        parts += ["### Under uvicorn", *pictures, report.group_table(results, plan, SERVED)]
    if report.measured(results, DIRECT):
        parts += ["### Without a server and without a store", report.group_table(results, plan, DIRECT)]
    return "\n\n".join(["", *parts, ""]).strip("\n")


def ahead(results: Results, plan: Plan, store: str) -> str:
    """Return where a peer costs less than a conversation of typed messages, of which this process has not read any before."""
    ours = f"convmem Conversation unread before, {store}"
    columns = (("turns/s", plan.sessions, "rate"), ("p50", 1, "p50"), ("client CPU", 1, "cpu"))
    rows = []
    for system in report.measured(results, store):
        if system.kind != "peer":
            continue
        fields = []
        for words, at_once, figure in columns:
            for messages in plan.sizes:
                here, there = (results.median(name, messages, at_once, figure) for name in (ours, system.name))
                if here and there:
                    times = there / here if figure == "rate" else here / there
                    if times > 1:
                        fields.append(f"{words} at {messages:,} messages {times:.1f} times")
        stored = [results.stored.get(name) for name in (f"convmem Store, {store}", system.name)]
        if stored[0] and stored[1] and stored[1] < stored[0]:
            fields.append(f"stored bytes {stored[0] / stored[1]:.1f} times")
        if fields:
            rows.append(f"- {system.name}: {', '.join(fields)}.")
    return "\n".join(rows) or "- nowhere in this run."


def _says(name: str, title: str) -> str:
    if name == "uvicorn.svg":
        return "Requests a second under uvicorn, with and without a memory"
    if name.endswith("growth.svg"):
        return f"What one turn takes as the conversation grows, on {title}: lines that stay flat, and lines that rise"
    return f"Turns a second of many conversations at once, on {title}"

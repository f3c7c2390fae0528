"""What a run says: a table in Markdown, ratios first, and the charts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import charts
from benchmarks.systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.run import Plan, Results

_MICRO = 1e6


def table(results: Results, plan: Plan) -> str:
    """Return the whole report."""
    parts = ["# Benchmarks\n", _machine(results)]
    for store in ("redis", "postgresql", "sqlite"):
        names = [system.name for system in SYSTEMS if system.store == store and _measured(results, system.name)]
        if names:
            parts += [f"\n## {store}\n", _ratios(results, plan, store, names), _figures(results, plan, names), _wire(results, plan, names)]
    if results.failed:
        parts.append("\n## Not measured\n\n" + "\n".join(f"- {name}: {why}" for name, why in results.failed.items()))
    return "\n".join(part for part in parts if part) + "\n"


def draw(results: Results, plan: Plan) -> dict[str, str]:
    """Return the charts by file name."""
    drawn = {}
    for store in ("redis", "postgresql", "sqlite"):
        systems = [system for system in SYSTEMS if system.store == store and _measured(results, system.name)]
        if not systems:
            continue
        series = {
            system.name: [
                (messages, value * 1000)
                for messages in plan.sizes
                if (value := results.median(system.name, messages, 1, "p50")) is not None
            ]
            for system in systems
        }
        drawn[f"{store}-growth.svg"] = charts.lines(
            f"One turn as the conversation grows, {store}", "messages stored before", "p50, milliseconds", series
        )
        for messages in plan.busy_sizes:
            values = {
                system.name: (rate, system.kind)
                for system in systems
                if (rate := results.median(system.name, messages, plan.sessions, "rate")) is not None
            }
            drawn[f"{store}-{messages}.svg"] = charts.bars(
                f"{plan.sessions} conversations at once, {messages} messages each, {store}", "turns a second, one process", values
            )
    return drawn


def _measured(results: Results, name: str) -> bool:
    return any(cell.system == name for cell in results.cells)


def _machine(results: Results) -> str:
    facts = results.facts
    rows = [f"{facts['processors']} x {facts['processor']}, {facts['system']}, load at the start {facts['load'][0]}"]
    for name, versions in facts["versions"].items():
        rows.append(f"{name}: " + ", ".join(f"{package} {version}" for package, version in versions.items()))
    return "\n".join(f"- {row}" for row in rows)


def _ratios(results: Results, plan: Plan, store: str, names: Sequence[str]) -> str:
    """Return convmem's doors against the limit and against the best peer, in this run."""
    kinds = {system.name: system.kind for system in SYSTEMS}
    limits = [name for name in names if kinds[name] == "limit"]
    peers = [name for name in names if kinds[name] == "peer"]
    busiest, most = plan.busy_sizes[-1], plan.sizes[-1]
    rows = ["| ratio | value |", "|---|---|"]
    for name in (name for name in names if kinds[name] == "convmem"):
        for limit in limits:
            for figure, words in (("p50", "p50"), ("cpu", "client CPU")):
                rows.append(_row(f"{name} / {limit}: {words}, {busiest} messages, one at a time",
                                 results.median(name, busiest, 1, figure), results.median(limit, busiest, 1, figure)))  # fmt: skip
            rate, other = (results.median(each, busiest, plan.sessions, "rate") for each in (name, limit))
            rows.append(_row(f"{name} / {limit}: turns/s, {busiest} messages, {plan.sessions} at once", rate, other))
        for messages in plan.busy_sizes:
            rates = [rate for peer in peers if (rate := results.median(peer, messages, plan.sessions, "rate")) is not None]
            if rates:
                rows.append(_row(f"{name} / the best peer on {store}: turns/s, {messages} messages, {plan.sessions} at once",
                                 results.median(name, messages, plan.sessions, "rate"), max(rates)))  # fmt: skip
        last, earlier = results.median(name, most, 1, "p50"), results.median(name, 100, 1, "p50")
        rows.append(_row(f"{name}: p50 at {most} messages / at 100", last, earlier))
    return "\n".join(row for row in rows if row)


def _row(words: str, one: float | None, other: float | None) -> str:
    return "" if one is None or not other else f"| {words} | {one / other:.2f} |"


def _figures(results: Results, plan: Plan, names: Sequence[str]) -> str:
    columns = [f"p50 / p99 / CPU µs, {messages:,}" for messages in plan.sizes]
    columns += [f"turns/s, {messages:,} x {plan.sessions}" for messages in plan.busy_sizes]
    rows = ["", "| system | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        fields = []
        for messages in plan.sizes:
            values = [results.median(name, messages, 1, figure) for figure in ("p50", "p99", "cpu")]
            fields.append("" if values[0] is None else " / ".join(f"{(value or 0) * _MICRO:,.0f}" for value in values))
        for messages in plan.busy_sizes:
            rate = results.median(name, messages, plan.sessions, "rate")
            fields.append("" if rate is None else f"{rate:,.0f} (±{results.spread(name, messages, plan.sessions, 'rate') * 50:.0f} %)")
        rows.append(f"| {name} | " + " | ".join(fields) + " |")
    return "\n".join(rows)


def _wire(results: Results, plan: Plan, names: Sequence[str]) -> str:
    sizes = [messages for messages in plan.sizes if messages]
    counted = [name for name in names if any((name, messages) in results.counted for messages in sizes)]
    if not counted:
        return ""
    rows = ["", "| round trips, bytes sent / received a turn | " + " | ".join(f"{messages:,}" for messages in sizes) + " |"]
    rows.append("|---" * (len(sizes) + 1) + "|")
    for name in counted:
        fields = []
        for messages in sizes:
            found = results.counted.get((name, messages))
            fields.append("" if found is None else f"{found[0]:g}: {found[1]:,.0f} / {found[2]:,.0f}")
        rows.append(f"| {name} | " + " | ".join(fields) + " |")
    return "\n".join(rows)

"""What a run says: tables in Markdown, what it is measured against first, and the charts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import charts, goals
from benchmarks.systems import DIRECT, SERVED, SYSTEMS, System

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.run import Plan, Results

_MICRO, _MEGABYTE = 1e6, 1e6
_TITLES = {"redis": "Redis", "postgresql": "PostgreSQL", "sqlite": "SQLite"}


def table(results: Results, plan: Plan) -> str:
    """Return the whole report."""
    parts = ["# Benchmarks\n", machine(results), "\n## Goals\n", goals.table(results, plan)]
    for store, title in _TITLES.items():
        if measured(results, store):
            parts += [f"\n## {title}\n", *store_tables(results, plan, store)]
    for group, title in ((SERVED, "Under uvicorn"), (DIRECT, "Without a server and without a store")):
        if measured(results, group):
            parts += [f"\n## {title}\n", group_table(results, plan, group)]
    if results.failed:
        parts.append("\n## Not measured\n\n" + "\n".join(f"- {name}: {why.splitlines()[0]}" for name, why in results.failed.items()))
    return "\n".join(parts) + "\n"


def measured(results: Results, group: str) -> list[System]:
    """Return the systems of a group that have figures, in their order."""
    names = {*(cell.system for cell in results.cells), *(name for name, _ in results.counted), *results.stored, *results.idle}
    return [system for system in SYSTEMS if (system.group or system.store) == group and system.name in names]


def machine(results: Results) -> str:
    """Return machine and versions, as a list."""
    facts = results.facts
    rows = [f"{facts['processors']} x {facts['processor']}, {facts['system']}, load at the start {facts['load'][0]}"]
    rows += [
        f"{name}: " + ", ".join(f"{package} {version}" for package, version in versions.items())
        for name, versions in facts["versions"].items()
    ]
    return "\n".join(f"- {row}" for row in rows)


def store_tables(results: Results, plan: Plan, store: str) -> list[str]:
    """Return the tables of one store."""
    systems = measured(results, store)
    tables = [
        "Turns a second in one process, as a multiple of `convmem Store`:\n",
        ratios(results, plan, store),
        "\nOne turn after the other: p50 / p99 / CPU of the client / CPU of the server, µs:\n",
        _sizes(systems, plan.sizes, lambda name, messages: _costs(results, name, messages, 1)),
        f"\n{plan.sessions} at once: turns/s (± half the spread), p50 / p99 / CPU of the client / CPU of the server, µs:\n",
        _sizes(systems, plan.sizes, lambda name, messages: _busy(results, plan, name, messages)),
    ]
    if any(system.name in results.stored for system in systems):
        tables += ["\nRound trips: bytes sent / received a turn, and bytes stored a message:\n", wire(results, plan, systems)]
    return tables


def ratios(results: Results, plan: Plan, store: str) -> str:
    """Return the table of turns a second, as multiples of those of `convmem Store`."""
    first = f"convmem Store, {store}"
    return _sizes(measured(results, store), plan.sizes, lambda name, messages: _ratio(results, plan, name, first, messages))


def group_table(results: Results, plan: Plan, group: str) -> str:
    """Return the table of a group whose systems have one length of conversation."""
    served = group == SERVED
    columns = ["app", "one at a time: p50 / p99 / CPU, µs"]
    columns += [f"{plan.sessions} connections: requests/s", "of the first", "memory when idle"] if served else []
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    systems = measured(results, group)
    for system in systems:
        (messages,) = system.sizes
        costs = [cost for figure in ("p50", "p99", "cpu") if (cost := results.median(system.name, messages, 1, figure)) is not None]
        fields = [system.name, " / ".join(f"{cost * _MICRO:,.{0 if served else 1}f}" for cost in costs)]
        if served:
            idle = results.idle.get(system.name)
            rate = _busy(results, plan, system.name, messages).partition(";")[0]
            fields += [rate, _ratio(results, plan, system.name, systems[0].name, messages), f"{idle / _MEGABYTE:,.1f} MB" if idle else ""]
        rows.append(f"| {' | '.join(fields)} |")
    return "\n".join(rows)


def draw(results: Results, plan: Plan) -> dict[str, str]:
    """Return the charts by file name."""
    drawn = {}
    for store, title in _TITLES.items():
        systems = measured(results, store)
        series = {
            system.name: (
                [(messages, value * 1e3) for messages in plan.sizes if (value := results.median(system.name, messages, 1, "p50"))],
                system.kind,
            )
            for system in systems
        }
        if any(line for line, _ in series.values()):
            drawn[f"{store}-growth.svg"] = charts.lines(
                f"One turn as the conversation grows, {title}", "messages stored before", "milliseconds, median", series
            )
        for messages in plan.busy_sizes:
            rates = _rates(results, plan, systems, messages)
            if rates:
                title_of_size = f"{plan.sessions} conversations at once, each of {messages:,} messages, {title}"
                drawn[f"{store}-{messages}.svg"] = charts.bars(title_of_size, "turns a second, one process", rates)
    served = measured(results, SERVED)
    for messages in {messages for system in served for messages in system.sizes}:
        rates = _rates(results, plan, served, messages)
        if rates:
            title = f"One worker of uvicorn, {plan.sessions} connections, conversations of {messages} messages, Redis"
            drawn["uvicorn.svg"] = charts.bars(title, "requests a second", rates)
    return drawn


def _rates(results: Results, plan: Plan, systems: Sequence[System], messages: int) -> dict[str, tuple[float, str]]:
    rates = {system.name: (results.median(system.name, messages, plan.sessions, "rate"), system.kind) for system in systems}
    return {name: (rate, kind) for name, (rate, kind) in rates.items() if rate}


def _sizes(systems: Sequence[System], sizes: Sequence[int], field: Callable[[str, int], str]) -> str:
    """Return a table with a row for each system and a column for each size."""
    rows = ["| system | " + " | ".join(f"{messages:,} messages" for messages in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    rows += [f"| {system.name} | " + " | ".join(field(system.name, messages) for messages in sizes) + " |" for system in systems]
    return "\n".join(rows)


def _ratio(results: Results, plan: Plan, name: str, first: str, messages: int) -> str:
    rates = [results.median(each, messages, plan.sessions, "rate") for each in (name, first)]
    return f"{rates[0] / rates[1]:.2f}" if rates[0] and rates[1] else ""


def _costs(results: Results, name: str, messages: int, at_once: int) -> str:
    costs = [results.median(name, messages, at_once, figure) for figure in ("p50", "p99", "cpu", "server")]
    return "" if costs[0] is None else " / ".join(f"{(cost or 0) * _MICRO:,.0f}" for cost in costs)


def _busy(results: Results, plan: Plan, name: str, messages: int) -> str:
    rate = results.median(name, messages, plan.sessions, "rate")
    if rate is None:
        return ""
    spread = results.spread(name, messages, plan.sessions, "rate") * 50
    return f"{rate:,.0f} (±{spread:.0f} %); {_costs(results, name, messages, plan.sessions)}"


def wire(results: Results, plan: Plan, systems: Sequence[System]) -> str:
    """Return the table of what passes a wire and what is stored."""
    rows = ["| system | " + " | ".join(f"{messages:,} messages" for messages in plan.sizes) + " | stored a message |"]
    rows.append("|---" * (len(plan.sizes) + 2) + "|")
    for system in systems:
        counts = [results.counted.get((system.name, messages)) for messages in plan.sizes]
        fields = ["" if found is None else f"{found[0]:g}: {found[1]:,.0f} / {found[2]:,.0f}" for found in counts]
        stored = results.stored.get(system.name)
        rows.append(f"| {system.name} | " + " | ".join(fields) + f" | {'' if stored is None else f'{stored:,.0f}'} |")
    return "\n".join(rows)

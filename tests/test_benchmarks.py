"""The benchmark measures what it says: every system does whole turns, one that forgets fails, and what came out is shown."""

import xml.etree.ElementTree as ET

import pytest

from benchmarks import charts
from benchmarks.report import draw, table
from benchmarks.run import Cell, Plan, Results, chosen
from benchmarks.systems import SYSTEMS, System
from benchmarks.worker import Worker

SQLITE = [system for system in SYSTEMS if system.store == "sqlite" and system.kind != "peer"]
PLAN = Plan(sizes=(0, 100), busy_sizes=(0, 100), rounds=1, seconds=0.01, sessions=2)


class Forgetful:
    """A system that is fast because it keeps nothing."""

    def __init__(self, place: str) -> None:
        self.place = place

    async def open(self) -> None: ...

    async def fill(self, session: str, messages: int) -> None: ...

    async def turn(self, session: str) -> int:
        return 0

    async def aclose(self) -> None: ...


@pytest.mark.asyncio
@pytest.mark.parametrize("system", SQLITE, ids=lambda system: system.name)
async def test_a_system_does_whole_turns(system: System, tmp_path, monkeypatch) -> None:
    """With and without a history, alone and with others."""
    monkeypatch.setenv("CONVMEM_SECRET_KEY", "a secret key of thirty-two bytes")
    worker = Worker()
    await worker.open(system.name, system.code, str(tmp_path))
    for messages in (0, 60):
        sessions = await worker.fill(system.name, messages, 3)
        figures = await worker.measure(system.name, messages, sessions, 0.01)
        assert figures["turns"] >= 8
        assert 0 < figures["p50"] <= figures["p99"]
    await worker.close(system.name)


@pytest.mark.asyncio
async def test_a_system_that_forgets_fails() -> None:
    """The planted twin: nothing may look fast by loading less than there is."""
    worker = Worker()
    await worker.open("forgetful", f"{__name__}:Forgetful", "")
    sessions = await worker.fill("forgetful", 100, 2)
    with pytest.raises(ExceptionGroup) as caught:
        await worker.measure("forgetful", 100, sessions, 0.01)
    assert "loaded 0 messages of 100" in str(caught.value.exceptions[0])


def results() -> Results:
    """Return figures of every system: those of convmem cost half."""
    found = Results(facts={"processors": 2, "processor": "any", "system": "any", "load": [0.0], "versions": {"own": {"python": "3"}}})
    for system in SYSTEMS:
        for messages in PLAN.sizes:
            cost = 1e-3 * (1 if system.kind == "convmem" else 2) * (1 + messages / 1000)
            figures = {"turns": 9, "p50": cost, "p99": 2 * cost, "cpu": cost, "rate": 1 / cost}
            for concurrency in (1, PLAN.sessions):
                found.cells[Cell(system, messages, concurrency)] = [figures, figures, figures]
            found.counted[system.name, messages] = (2, 100, 200)
    return found


def test_the_table_says_ratios_first() -> None:
    """Milliseconds of one machine mean nothing on another."""
    text = table(results(), PLAN)
    assert "| convmem Store, redis / redis-py: p50, 100 messages, one at a time | 0.50 |" in text
    assert "| convmem middleware, sqlite / the best peer on sqlite: turns/s, 100 messages, 2 at once | 2.00 |" in text
    assert text.index("| ratio | value |") < text.index("| system |")
    assert all(f"| {system.name} |" in text for system in SYSTEMS)


def test_the_charts_are_well_formed_and_name_every_system() -> None:
    """They go into pages as they are."""
    drawn = draw(results(), PLAN)
    assert len(drawn) == 9
    for chart in drawn.values():
        ET.fromstring(chart)
    assert all(any(system.name in chart for chart in drawn.values()) for system in SYSTEMS)


def test_a_longer_bar_is_a_larger_value() -> None:
    """And the longest comes first."""
    chart = ET.fromstring(charts.bars("b", "turns/s", {"slow & small": (10.0, "peer"), "fast": (40.0, "convmem")}))
    widths = [float(bar.get("width", "0")) for bar in chart.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths[0] == pytest.approx(4 * widths[1])


def test_systems_are_chosen_by_word() -> None:
    """A name or a store."""
    assert {system.store for system in chosen(["redis"], peers=False)} == {"redis"}
    assert all(system.kind != "peer" for system in chosen([], peers=False))

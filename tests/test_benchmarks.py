"""The benchmark measures what it says: every system does whole turns, one that forgets fails, and what came out is shown."""

import itertools
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from redis.asyncio import Redis

from benchmarks import charts, goals, publish, served, soak, workload
from benchmarks.report import draw, table
from benchmarks.run import Cell, Places, Plan, Results, chosen
from benchmarks.systems import DIRECT, SYSTEMS, System
from benchmarks.worker import Worker
from tests.wheels import valkey

SQLITE = [system for system in SYSTEMS if system.store == "sqlite" and system.kind != "peer"]
SVG = "{http://www.w3.org/2000/svg}"
PLAN = Plan(sizes=(0, 100), busy_sizes=(0, 100), rounds=1, seconds=0.01, minutes=1, sessions=2)


class Forgetful(workload.System):
    """A system that is fast because it keeps nothing."""

    async def fill(self, session: str, messages: int) -> None: ...

    async def turn(self, session: str) -> int:
        return 0


@pytest.mark.asyncio
@pytest.mark.parametrize("system", SQLITE, ids=lambda system: system.name)
async def test_a_system_does_whole_turns(system: System, tmp_path, monkeypatch) -> None:
    """With and without a history, alone and with others."""
    monkeypatch.setenv("CONVMEM_SECRET_KEY", "a secret key of thirty-two bytes")
    worker = Worker()
    await worker.open(system.name, system.code, str(tmp_path))
    for messages in (0, 60):
        assert await worker.fill(system.name, system.name, messages, 3, windowed=True) == (3 if messages else 0)
        await worker.warm(system.name, system.name, messages)
        figures = await worker.measure(system.name, system.name, messages, 3, 0.01)
        assert figures["turns"] >= 4
        assert 0 < figures["p50"] <= figures["p99"]
    await worker.close(system.name)


@pytest.mark.asyncio
async def test_a_system_that_forgets_fails() -> None:
    """The planted twin: nothing may look fast by loading less than there is."""
    worker = Worker()
    await worker.open("forgetful", f"{__name__}:Forgetful", "")
    await worker.fill("forgetful", "forgetful", 100, 2, windowed=True)
    with pytest.raises(ExceptionGroup) as caught:
        await worker.measure("forgetful", "forgetful", 100, 2, 0.01)
    assert "loaded 0 messages of 100" in str(caught.value.exceptions[0])


@pytest.mark.asyncio
async def test_an_app_under_uvicorn_keeps_what_was_said(valkey_server: valkey.Valkey) -> None:
    """An app that forgets would be fast too; and one whose handler looks at nothing has to store all the same."""
    silent, reading = served.Silent(valkey_server.url), served.Reading(valkey_server.url)
    try:
        await silent.open()
        await reading.open()
        await silent.fill("ada", 10)
        assert silent.idle > 0
        reading._cookies = silent._cookies
        assert await reading.turn("ada") == 10
        sessions = workload.Sessions("any", 12, windowed=True)
        sessions.add("ada")
        before = reading.cpu()
        latencies = await reading.talk(sessions, 1, 0.05)
        assert len(latencies) >= 3, "one conversation of so few messages is good for three turns"
        assert reading.cpu() > before
        sessions = workload.Sessions("any", 500, windowed=True)
        sessions.add("ada")
        with pytest.raises(AssertionError, match="messages of 500"):
            await reading.talk(sessions, 1, 0.05)
    finally:
        await silent.aclose()
        await reading.aclose()


def test_an_app_ends_with_whoever_started_it() -> None:
    """A run ends its workers with SIGKILL, and nobody is left to end what they started."""
    command = [sys.executable, "-m", "benchmarks.serve", "benchmarks.plain:without", "nowhere"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.mark.asyncio
async def test_what_a_place_holds_and_its_server_uses_is_seen() -> None:
    """The bytes that are stored, wherever they are, and the CPU of the server."""
    text = random.randbytes(50_000).hex()
    with ExitStack() as stack:
        places = Places(stack)
        for store in ("redis", "postgresql", "sqlite"):
            system = System(f"any, {store}", "limit", store, "own", "")
            place = places.of(system)
            assert place == places.of(system)
            before, cpu = await places.taken(system, place), places.cpu(system)
            if store == "redis":
                async with Redis.from_url(place) as redis:
                    await redis.set("any", text)
                    assert await places.connections(place) >= 1
            elif store == "postgresql":
                link = await asyncpg.connect(place)
                await link.execute("CREATE TABLE any_table (body text STORAGE EXTERNAL)")
                await link.execute("INSERT INTO any_table VALUES ($1)", text)
                assert await places.connections(place) >= 1
                await link.close()
            else:
                (Path(place) / "any.db").write_text(text)
            assert 100_000 <= await places.taken(system, place) - before <= 140_000
            assert places.cpu(system) > cpu or store == "sqlite"


@pytest.mark.parametrize(("messages", "windowed", "turns"), [(0, True, 1), (10, True, 3), (1000, False, 50), (1000, True, float("inf"))])
def test_a_conversation_is_put_away_before_it_is_another_length(messages: int, windowed: bool, turns: float) -> None:
    """A library that loads everything is not to be measured on a history that the measuring made ten times as long."""
    pool = workload.Sessions("any", messages, windowed=windowed)
    for session in pool.missing(2):
        pool.add(session)
    loan = pool.take()
    assert loan is not None
    assert loan.turns == turns
    pool.give_back(loan._replace(turns=0))
    assert len(pool.missing(2)) == (1 if messages else 0)


def test_what_a_run_wrote_can_be_read_again() -> None:
    """The pages are made of the lines, without measuring anew."""
    first = results()
    again = Results.of_lines(first.lines())
    assert again.lines() == first.lines()
    assert table(again, PLAN) == table(first, PLAN)


def results() -> Results:
    """Return figures of every system: those of convmem cost half."""
    found = Results(
        facts={
            "processors": 2,
            "processor": "any",
            "system": "any",
            "load": [0.0],
            "versions": {"own": {"python": "3"}},
            "plan": asdict(PLAN),
        }
    )
    for system in SYSTEMS:
        for messages in system.sizes or PLAN.sizes:
            cost = 1e-3 * (1 if system.kind == "convmem" else 2) * (1 + messages / 1000)
            figures = {"turns": 9, "p50": cost, "p99": 2 * cost, "cpu": cost, "server": 0.0, "rate": 1 / cost}
            for concurrency in (1, PLAN.sessions):
                found.cells[Cell(system.name, messages, concurrency)] = [figures, figures, figures]
            found.counted[system.name, messages] = (2, 100, 200)
        found.stored[system.name] = 500.0
    return found


def test_the_table_says_ratios_first() -> None:
    """Milliseconds of one machine mean nothing on another; a goal that is missed is said as loudly as one that is met."""
    text = table(results(), PLAN)
    assert "| convmem Store, redis: a turn of 100 messages over one of 100: p50, CPU, bytes | ≤ 1.15 | 1.00 / 1.00 / 1.00 | met |" in text
    assert "32 conversations" not in text, "the plan says how many talk at once"
    assert "turns/s in 2 conversations of 0 messages | ≥ 3 | 2.00 | **not met** |" in text
    assert "the handler reads nothing: over the app without a memory | ≥ 0.3 | 2.00 | met |" in text
    assert text.index("## Goals") < text.index("| system |")
    assert all(f"| {system.name} |" in text for system in SYSTEMS)


def test_a_goal_is_kept_by_every_figure() -> None:
    """One that is good on the average is not kept; and what is shown as the bound keeps it."""
    assert goals.Goal("x", "≤", 1.15, [1.1, 1.154]).met
    assert not goals.Goal("x", "≤", 1.15, [1.1, 1.16]).met
    assert not goals.Goal("x", "≥", 5, [5, 4.9]).met


def test_the_charts_are_well_formed_and_name_every_system() -> None:
    """They go into pages as they are."""
    drawn = draw(results(), PLAN)
    assert len(drawn) == 10
    for chart in drawn.values():
        ET.fromstring(chart)
    assert all(any(system.name in chart for chart in drawn.values()) for system in SYSTEMS if system.group != DIRECT)


@pytest.mark.parametrize("end", [1.0, 1000.0])
def test_the_names_beside_the_lines_do_not_meet(end: float) -> None:
    """Ten lines that end in one place are told apart all the same, inside the picture."""
    series = {f"line {n}": ([(1.0, 1.0), (10.0, end)], "peer") for n in range(10)}
    chart = ET.fromstring(charts.lines("c", "x", "y", series))
    heights = sorted(float(text.get("y", "")) for text in chart.iter(f"{SVG}text") if (text.text or "").startswith("line"))
    assert len(heights) == 10
    assert all(below - above >= 16 for above, below in itertools.pairwise(heights))
    assert heights[0] > 30
    assert heights[-1] < float(chart.get("viewBox", "").split()[-1])


def test_an_axis_ends_at_a_round_number() -> None:
    """A reader is to see what a mark stands for, and the line is to stay inside."""
    chart = ET.fromstring(charts.over_time("c", "MB", {"one": [(0.0, 3.0), (3.7, 86.2)]}))
    marks = [text.text for text in chart.iter(f"{SVG}text") if (text.text or "").isdigit()]
    assert marks == ["0", "20", "40", "60", "80", "100", "0", "1", "2", "3", "4"]


def test_a_longer_bar_is_a_larger_value() -> None:
    """And the longest comes first."""
    chart = ET.fromstring(charts.bars("b", "turns/s", {"slow & small": (10.0, "peer"), "fast": (40.0, "convmem")}))
    widths = [float(bar.get("width", "0")) for bar in chart.iter(f"{SVG}rect")][1:]
    assert widths[0] == pytest.approx(4 * widths[1])


def test_the_page_is_given_the_figures_of_a_run(tmp_path) -> None:
    """By one command and as often as wanted: what stands around the figures stays, and every picture is there."""
    page = tmp_path / publish.PAGE
    page.parent.mkdir()
    (tmp_path / publish.IMAGES).mkdir()
    page.write_text(f"before\n\n{publish.BEGIN}\nstale figures\n{publish.END}\n\nafter\n")
    (tmp_path / "lines.jsonl").write_text("\n".join(results().lines()))
    publish.publish(tmp_path / "lines.jsonl", tmp_path)
    first = page.read_text()
    publish.publish(tmp_path / "lines.jsonl", tmp_path)
    assert page.read_text() == first
    assert first.startswith("before\n")
    assert first.endswith("\nafter\n")
    assert "stale figures" not in first
    pictures = re.findall(r"\]\(([^)]+\.svg)\)", first)
    assert len(pictures) == 7
    assert all((page.parent / picture).is_file() for picture in pictures)


def test_a_peer_that_is_ahead_is_said_to_be() -> None:
    """What another does better stands beside what convmem does better."""
    found = results()
    assert publish.ahead(found, PLAN, "redis") == "- nowhere in this run."
    for concurrency in (1, PLAN.sessions):
        (figures, *_) = found.cells[Cell("starsessions", 0, concurrency)]
        found.cells[Cell("starsessions", 0, concurrency)] = [{**figures, "p50": figures["p50"] / 8, "rate": figures["rate"] * 8}]
    assert publish.ahead(found, PLAN, "redis") == "- starsessions: turns/s at 0 messages 4.0 times, p50 at 0 messages 4.0 times."


def samples(**leaks: float) -> list[soak.Sample]:
    """Return a soak's samples: everything flat but what is said to grow, by so much from the first to the last."""
    flat = {
        "resident": 80e6,
        "descriptors": 20.0,
        "tasks": 10.0,
        "connections": 8.0,
        "p99": 0.05,
        "bare": 0.01,
        "cpu": 0.001,
        "rate": 500.0,
    }
    found = []
    for number in range(40):
        now = {name: value + leaks.get(name, 0.0) * number / 39 for name, value in flat.items()}
        found.append(
            soak.Sample(
                number / 4,
                [int(now["resident"])] * 4,
                [int(now["descriptors"])] * 4,
                [int(now["tasks"])] * 4,
                int(now["connections"]),
                *(now[name] for name in ("p99", "bare", "cpu", "rate")),
            )
        )
    return found


@pytest.mark.parametrize(
    ("leak", "said"),
    [
        ("resident", "memory"),
        ("descriptors", "sockets"),
        ("tasks", "tasks"),
        ("connections", "connections"),
        ("p99", "p99"),
        ("cpu", "CPU"),
    ],
)
def test_a_soak_names_what_grows(leak: str, said: str) -> None:
    """The planted twin of each thing that is watched: twice as much at the end as at the beginning."""
    assert soak.grown(samples()) == []
    (sentence,) = soak.grown(samples(**{leak: {"resident": 80e6, "p99": 0.1, "cpu": 0.001}.get(leak, 40.0)}))
    assert said in sentence


def test_a_soak_forgives_the_machine() -> None:
    """When everything waits longer it is no fault of a turn's."""
    assert soak.grown(samples(p99=0.1, bare=0.02)) == []


@pytest.mark.all_only
@pytest.mark.asyncio
async def test_a_soak_talks_to_four_workers(valkey_server: valkey.Valkey) -> None:
    """A few seconds of it: every kind of request is answered, and what is left at the end is what was there before."""

    class Places:
        async def connections(self, place: str) -> int:
            return 1

    run = soak.Soak(valkey_server.url, cast("Any", Places()), lambda line, done=0, of=0: None)
    await run.run(0.05, conversations=100)
    assert {name.split()[0] for name in run.traffic.done} >= {"chat", "stream", "history", "bare"}
    assert not run.traffic.wrong
    assert not run.left
    assert run.samples[-1].tasks[0] > 0
    assert len(soak.draw(run.samples, "redis")) == 6


def test_systems_are_chosen_by_word() -> None:
    """A name or a store."""
    assert {system.store for system in chosen(["redis"], peers=False)} == {"redis"}
    assert all(system.kind != "peer" for system in chosen([], peers=False))

"""The page about faults says what the tests do, and no more."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.checker import ANOMALIES
from tests.faults.conftest import PLACES
from tests.faults.plants import PLANTS

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "explanation" / "faults.md").read_text(encoding="utf-8")
ABOUT_TOOLS = {"test_checker.py", "test_proxy.py", "test_page.py"}
TESTS = {
    name for file in HERE.glob("test_*.py") if file.name not in ABOUT_TOOLS for name in re.findall(r"def (test_\w+)", file.read_text())
}


def rows(heading: str) -> list[list[str]]:
    """Return the lines of the first table under a heading."""
    table = PAGE.partition(f"\n## {heading}\n")[2].partition("\n|")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_fault_on_the_page_is_a_test_and_every_test_of_a_fault_is_on_the_page():
    """But for the twins, and for what is a longer run of another."""
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named <= TESTS, "the page names tests that are not there"
    longer = {"test_eight_processes_for_a_hundred_turns_each_on_three_conversations"}
    assert {name for name in TESTS - longer if not name.startswith("test_twin_")} <= named


def test_every_anomaly_and_every_broken_build_is_on_the_page():
    """In the words of the checker."""
    for name, meaning in ANOMALIES.items():
        assert f"| `{name}` | {meaning[0].upper()}{meaning[1:]}. |" in PAGE
    for plant in filter(None, PLANTS):
        assert f"| `{plant}` |" in PAGE


def test_each_of_our_stores_is_compared_and_keeps_everything():
    """The table is what `python -m tests.faults.compare` printed."""
    ours = {row[0]: row[1:] for row in rows("Eight processes, one conversation") if row[0].startswith("convmem, ")}
    assert ours == {f"convmem, {store}": ["480", "0", "480", "0", "0", "0", "0"] for store in PLACES}

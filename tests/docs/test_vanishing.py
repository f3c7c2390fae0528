"""The page "Why did my memory vanish?": every cause is on it, under a symptom, with a test that exists and shows it."""

import ast
import re

import pytest

from convmem.cli import commands

from .pages import DOCS, ROOT

PAGE = (DOCS / "how-to" / "why-did-my-memory-vanish.md").read_text(encoding="utf-8")
SYMPTOMS, TESTS, LATER = re.split("^## The tests$|^## What comes later$", PAGE, flags=re.MULTILINE)
CAUSES = [int(number) for number in re.findall(r"^\| (\d+) \| .+ \| .+ \|$", SYMPTOMS, re.MULTILINE)]
NAMED = [
    (int(number), file, name)
    for file, table in re.findall(r"^In `(\S+)`, .+?:$(.+?)(?=^In |\Z)", TESTS, re.MULTILINE | re.DOTALL)
    for number, name in re.findall(r"^\| (\d+) \| `(\S+)` \|$", table, re.MULTILINE)
]
ARRIVED = {"convmem doctor": lambda: hasattr(commands, "doctor")}


def numbered_in(file: str) -> dict[int, str]:
    """Return the table ``ROWS`` of a test module, without importing what it imports."""
    for statement in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ROWS":
            return ast.literal_eval(statement.value)
    raise AssertionError(file)


TESTED = {file: numbered_in(file) for file in ("tests/test_forgetting.py", "tests/adapters/test_forgetting.py")}


def test_every_cause_is_on_the_page_once():
    """33 are named by those who explain the problem; a reader should not have to guess which one was left out."""
    assert sorted(CAUSES) == list(range(1, 34))
    assert {number for number, *_ in NAMED} == set(CAUSES)


@pytest.mark.parametrize(("number", "file", "name"), NAMED)
def test_every_cause_names_a_test_that_exists(number, file, name):
    """A claim beside a test that is not there is a claim."""
    assert name in TESTED[file].values()
    assert TESTED[file].get(number, name) == name


def test_every_test_of_a_cause_is_on_the_page():
    """A cause that is tested and not named helps nobody."""
    assert {(number, file, name) for file, rows in TESTED.items() for number, name in rows.items()} <= set(NAMED)


def test_what_comes_later_has_not_come():
    """When a store or a command arrives, its test belongs on this page, and its line here goes."""
    promised = set(re.findall(r"`([^`]+)`", " ".join(line.rpartition("|")[0].rpartition("|")[2] for line in LATER.splitlines())))
    waiting = {name for name, arrived in ARRIVED.items() if not arrived()}
    assert promised == waiting, "what arrived needs a test: name it at cause 33, and take the line out"

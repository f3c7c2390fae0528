"""The rules of the log, explored: with all of them every promise holds, without any one of them some promise breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convmem.testing.model import Rule

from .exploration import Attempt, Violated, explore

A, R, B, C = Attempt("t", "A", saves=1), Attempt("t", "R"), Attempt("u", "B"), Attempt("v", "C")
"""A turn that saves its question first, a retry of it, and two other turns."""

SCENARIOS: dict[str, tuple[tuple[Attempt, ...], dict[str, int], int]] = {
    "a turn and its retry": ((A, R), {"lost": 2, "lapse": 2, "crash": 1, "delete": 2}, 4),
    "a store that loses": ((A, B), {"lapse": 1, "lose": 2, "wipe": 1, "delete": 1, "lost": 1}, 3),
    "a failover that others write over": ((A, B, C), {"lapse": 1, "lose": 2, "lost": 1}, 2),
    "two turns": ((A, B), {"lost": 2, "lapse": 2, "crash": 1, "delete": 2}, 4),
    "a turn, its retry and another": ((A, R, B), {"lost": 1, "lapse": 2, "crash": 1, "delete": 1}, 3),
    "three turns and deletes": ((replace(A, saves=0), B, C), {"lapse": 2, "delete": 3}, 4),
    "without leases": ((A, replace(B, leased=False), replace(C, leased=False)), {"lost": 2, "lapse": 1, "delete": 1}, 3),
}
"""Attempts, how many accidents of each kind, and how many at most altogether."""

COVERED = {Rule.UNKNOWN_EPOCH, Rule.RELEASE_DUPLICATE}
"""What other rules catch as well: an entry id lives in one epoch only, and a closing append that was stored has ended its lease
already. They are kept for a store that compares no ids in front of `Head.start`, and for a repeat that asks to release what its
first try did not."""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_with_all_rules_every_promise_holds(scenario: str) -> None:
    """No acknowledged turn is lost, doubled, torn, reordered or in the wrong life, and every outcome tells the truth."""
    attempts, accidents, at_most = SCENARIOS[scenario]
    assert explore(attempts, accidents, at_most) > 1000


@pytest.mark.all_only
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_with_two_more_accidents_every_promise_holds(scenario: str) -> None:
    """The same, deeper."""
    attempts, accidents, at_most = SCENARIOS[scenario]
    explore(attempts, {kind: times + 1 for kind, times in accidents.items()}, at_most + 2)


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule not in COVERED], ids=lambda rule: rule.name)
def test_without_a_rule_some_promise_breaks(rule: Rule) -> None:
    """A rule that can be left out is no rule; and an exploration that finds nothing may be blind."""
    for attempts, accidents, at_most in SCENARIOS.values():
        try:
            explore(attempts, accidents, at_most, without=frozenset({rule}))
        except Violated:
            return
    pytest.fail(f"nothing breaks without: {rule.value}")


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule in COVERED], ids=lambda rule: rule.name)
def test_a_rule_that_others_cover_breaks_nothing(rule: Rule) -> None:
    """So that the list of covered rules stays true."""
    for scenario in ("a turn and its retry", "a store that loses"):
        attempts, accidents, at_most = SCENARIOS[scenario]
        explore(attempts, accidents, at_most, without=frozenset({rule}))


def test_a_repeat_under_a_new_entry_id_breaks_a_promise() -> None:
    """The caller's part: after an unknown outcome the same entry is repeated, not another one with the same text."""
    with pytest.raises(Violated):
        explore((A, B), {"lost": 1}, 1, new_ids=True)

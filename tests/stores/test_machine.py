"""Every store answers as the model does, whatever the schedule."""

from __future__ import annotations

import pytest

from convmem.testing.machine import compare_with_model

from .broken import BROKEN, opener
from .conftest import Backend

FOUND = [
    "test_a_duplicate_ends_its_lease_too",
    "test_a_retry_supersedes_an_attempt_before_a_later_turn",
    "test_a_stranger_releases_nothing",
    "test_a_window_of_messages_holds_whole_turns",
    "test_a_pinned_entry_that_is_hidden_stays_hidden",
    "test_another_entry_at_the_position_is_a_gap",
    "test_a_delete_of_nothing_leaves_a_mark",
    "test_a_first_append_under_an_old_mark_is_gone_in_the_next_life",
    "test_a_lease_that_ran_out_is_lost_when_the_head_moved",
    "test_a_live_lease_of_another_fences",
    "test_a_log_that_went_on_is_a_conflict",
    "test_a_repeated_entry_is_found_behind_others",
    "test_duplicate_is_told_before_fenced",
    "test_gone_is_told_before_gap",
    "test_the_epochs_of_all_lives_stay_known",
]
"""Broken stores, by the clause each breaks, that random schedules have to find as well."""


def test_a_store_and_the_model_never_differ(backend: Backend) -> None:
    """The clauses are what we thought of; this is what we did not."""
    compare_with_model(backend.open)


@pytest.mark.parametrize("clause", FOUND)
def test_a_broken_store_is_found_out(clause: str) -> None:
    """Schedules that find no planted fault would find no other either."""
    with pytest.raises(AssertionError):
        compare_with_model(opener(BROKEN[clause]), examples=1000, shrink=False)

"""Patterns: which requests have a conversation, and which take its lease."""

from __future__ import annotations

import pytest

from convmem import ConfigurationError
from convmem.routes import Routes


def test_a_star_matches_anything_and_the_rest_is_literal() -> None:
    """Nobody expects a dot or a question mark of a path to be a pattern."""
    routes = Routes(paths=["/chat*", "/a.b"])
    assert [routes.covers(path) for path in ("/chat", "/chat/1/2", "/chats", "/a.b", "/axb", "/", "/other/chat")] == [
        True,
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_without_patterns_every_post_takes_the_lease() -> None:
    """A GET that only reads must not wait for a running turn."""
    routes = Routes()
    assert routes.covers("/anything")
    assert [routes.turn(method, "/x")[0] for method in ("POST", "GET", "HEAD", "OPTIONS", "PUT")] == [True, False, False, False, False]


def test_the_first_matching_turn_pattern_decides_on_the_policy() -> None:
    """One route may reject while the others wait."""
    routes = Routes(turns={"POST /chat/quick": "reject", "POST /chat*": "wait", "/events": "wait"})
    assert routes.turn("POST", "/chat/quick") == (True, "reject")
    assert routes.turn("POST", "/chat/slow") == (True, "wait")
    assert routes.turn("GET", "/events") == (True, "wait")
    assert routes.turn("HEAD", "/events") == (False, None)
    assert routes.turn("GET", "/chat/quick") == (False, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"paths": "/chat"},
        {"paths": ["chat"]},
        {"turns": "POST /chat"},
        {"turns": ["post /chat"]},
        {"turns": ["POST chat"]},
        {"turns": {"/chat": "queue"}},
        {"load": "lazy"},
        {"load": ["chat"]},
    ],
)
def test_a_pattern_of_another_form_says_how_to_write_it(wrong: dict) -> None:
    """A pattern that silently matches nothing is a chat that forgets."""
    with pytest.raises(ConfigurationError, match=r"write a list|begins with|in capitals|use "):
        Routes(**wrong)


def test_loading_is_deferred_everywhere_or_on_some_paths() -> None:
    """Sign-in inside the app may concern one part of it."""
    assert Routes(load="deferred").defers("/any")
    assert not Routes().defers("/any")
    assert [Routes(load=["/api/*"]).defers(path) for path in ("/api/x", "/web")] == [True, False]

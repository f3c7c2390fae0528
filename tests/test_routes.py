"""Patterns: which requests have a conversation, and which take its lease."""

from __future__ import annotations

import pytest

from convmem import ConfigurationError
from convmem.routes import Routes


def leases(routes: Routes, method: str, path: str) -> bool:
    route = routes.find(method, path)
    return route is not None and route.leases


def defers(routes: Routes, path: str) -> bool:
    route = routes.find("GET", path)
    return route is not None and route.defers


def test_a_star_matches_anything_and_the_rest_is_literal() -> None:
    """Nobody expects a dot or a question mark of a path to be a pattern."""
    routes = Routes(paths=["/chat*", "/a.b"])
    assert [routes.find("GET", path) is not None for path in ("/chat", "/chat/1/2", "/chats", "/a.b", "/axb", "/", "/other/chat")] == [
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
    assert routes.find("GET", "/anything") is not None
    assert [leases(routes, method, "/x") for method in ("POST", "GET", "HEAD", "OPTIONS", "PUT")] == [True, False, False, False, False]


def test_the_first_matching_turn_pattern_decides_on_the_policy() -> None:
    """One route may reject while the others wait."""
    routes = Routes(turns={"POST /chat/quick": "reject", "POST /chat*": "wait", "/events": "wait"})
    assert routes.find("POST", "/chat/quick") == (False, True, "reject")
    assert routes.find("POST", "/chat/slow") == (False, True, "wait")
    assert routes.find("GET", "/events") == (False, True, "wait")
    assert routes.find("HEAD", "/events") == (False, False, None)
    assert routes.find("GET", "/chat/quick") == (False, False, None)


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
    assert defers(Routes(load="deferred"), "/any")
    assert not defers(Routes(), "/any")
    assert [defers(Routes(load=["/api/*"]), path) for path in ("/api/x", "/web")] == [True, False]

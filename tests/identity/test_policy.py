"""A policy by which no request could be resolved stops the start, with the setting's name."""

from datetime import timedelta

import pytest

from convmem.exceptions import ConfigurationError
from convmem.identity import IdentityPolicy, VisitorPolicy, from_callable, from_header


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"who": ("user", "cookie")}, "CONVMEM_IDENTITY names 'cookie'"),
        ({"who": ()}, "CONVMEM_IDENTITY is empty"),
        ({"client_ids": "any"}, "CONVMEM_CLIENT_IDS"),
        ({"session_from": ("cookie",)}, "CONVMEM_SESSION_FROM names 'cookie'"),
        ({"session_from": ("query",)}, "CONVMEM_SESSION_FROM"),
        ({"session_from": ("query:",)}, "query:NAME"),
        ({"session_from": ("path:/chats",)}, "/chats/{id}"),
        ({"session_header": "X Session"}, "X Session"),
        ({"session_from": ("query:s",), "trust_session_header": True}, "CONVMEM_TRUST_SESSION_HEADER"),
    ],
)
def test_a_wrong_value_is_named(options, sentence):
    """The person who reads it set it a minute ago and wants to know what to write instead."""
    with pytest.raises(ConfigurationError, match=sentence):
        IdentityPolicy(**options)


def test_an_apps_own_resolvers_are_enough():
    """A service behind its own gateway may know neither users nor visitors."""
    IdentityPolicy(who=(), resolvers=[from_callable(lambda scope: "42")])
    IdentityPolicy(who=(), session_from=(), trust_session_header=True, resolvers=[from_header("X-Chat")])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cookie_name": "a;b"}, "CONVMEM_COOKIE_NAME"),
        ({"cookie_name": ""}, "CONVMEM_COOKIE_NAME"),
        ({"cookie_name": "__Host-a", "secure": False}, "CONVMEM_COOKIE_SECURE=always"),
        ({"cookie_name": "__host-a", "domain": "example.org"}, "leave the prefix out"),
        ({"cookie_name": "__Secure-a", "secure": False}, "CONVMEM_COOKIE_SECURE=always"),
        ({"samesite": "Lax"}, "CONVMEM_COOKIE_SAMESITE"),
        ({"samesite": "none", "secure": False}, "CONVMEM_COOKIE_SECURE=always"),
        ({"partitioned": True, "secure": False}, "CONVMEM_COOKIE_SECURE=always"),
        ({"max_age": timedelta(0)}, "CONVMEM_COOKIE_MAX_AGE"),
        ({"path": "chat"}, "CONVMEM_COOKIE_PATH"),
        ({"path": "/; Domain=evil"}, "CONVMEM_COOKIE_PATH"),
        ({"domain": "a; Path=/"}, "CONVMEM_COOKIE_DOMAIN"),
        ({"header": "Convmem Visitor"}, "header"),
    ],
)
def test_a_cookie_that_browsers_would_drop_is_refused(options, sentence):
    """They drop it without a word, and every request would be a new visitor's."""
    with pytest.raises(ConfigurationError, match=sentence):
        VisitorPolicy(**options)


@pytest.mark.parametrize(
    ("options", "cookie"),
    [
        ({}, b"__Host-convmem=t; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure"),
        ({"secure": False}, b"convmem=t; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax"),
        ({"path": "/api"}, b"convmem=t; Path=/api; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure"),
        ({"domain": "example.org"}, b"convmem=t; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax; Domain=example.org; Secure"),
        (
            {"samesite": "none", "partitioned": True, "max_age": timedelta(hours=1), "cookie_name": "chat"},
            b"__Host-chat=t; Path=/; Max-Age=3600; HttpOnly; SameSite=None; Secure; Partitioned",
        ),
        ({"cookie_name": "__Host-chat"}, b"__Host-chat=t; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure"),
        (
            {"cookie_name": "__Secure-chat", "path": "/x"},
            b"__Secure-chat=t; Path=/x; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure",
        ),
    ],
)
def test_the_cookie_and_its_name_follow_the_settings(options, cookie):
    """The prefix where the browser will accept it, HttpOnly always."""
    assert VisitorPolicy(**options).set_cookie("t") == cookie

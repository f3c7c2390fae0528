"""What the browser says about the site of a request."""

import pytest

from convmem.identity.sites import is_own_site, names_site, withholds_cookie
from tests.identity.scopes import http, sent

NAVIGATION = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}


@pytest.mark.parametrize(
    ("site", "own"), [("same-origin", True), ("same-site", True), ("none", True), ("cross-site", False), ("Same-Origin", False)]
)
def test_own_site_is_what_the_browser_says(site, own):
    """Only these three values come from our pages or from the address bar."""
    assert is_own_site(http(sec_fetch_site=site)) is own


def test_without_the_header_it_is_no_browser_on_our_site():
    """An API client does not keep cookies just because it is asked to."""
    assert not is_own_site(http())
    assert not names_site(http())


def test_two_values_are_not_own_site_and_a_cross_site_one_counts():
    """Two values say that somebody on the way meddled; the stricter reading holds."""
    scope = http(*sent(sec_fetch_site="same-origin"), *sent(sec_fetch_site="cross-site"))
    assert not is_own_site(scope)
    assert names_site(scope)
    assert withholds_cookie(scope, "lax")


@pytest.mark.parametrize(
    ("samesite", "method", "headers", "withheld"),
    [
        ("lax", "POST", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"}, True),
        ("lax", "GET", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"}, True),
        ("lax", "GET", {"sec_fetch_site": "cross-site"}, True),
        ("lax", "GET", NAVIGATION, False),
        ("lax", "GET", {**NAVIGATION, "sec_fetch_dest": "document"}, False),
        ("lax", "GET", {**NAVIGATION, "sec_fetch_dest": "iframe"}, True),
        ("lax", "POST", NAVIGATION, True),
        ("lax", "POST", {"sec_fetch_site": "same-site"}, False),
        ("lax", "POST", {}, False),
        ("strict", "GET", NAVIGATION, True),
        ("strict", "GET", {"sec_fetch_site": "same-site"}, False),
        ("none", "POST", {"sec_fetch_site": "cross-site", "sec_fetch_mode": "cors"}, False),
    ],
)
def test_the_cookie_is_withheld_where_its_samesite_says_so(samesite, method, headers, withheld):
    """A missing cookie means no new visitor there: the old one's cookie exists and was not sent."""
    assert withholds_cookie(http(method=method, **headers), samesite) is withheld


def test_a_websocket_from_another_site_is_no_navigation():
    """It has no method at all."""
    scope = http(sec_fetch_site="cross-site", sec_fetch_mode="websocket")
    del scope["method"]
    assert withholds_cookie({**scope, "type": "websocket"}, "lax")

"""Bytes are read exactly as they came."""

import pytest
from hypothesis import given, strategies as st

from convmem.exceptions import InvalidIdentity
from convmem.identity.headers import cookie_values, query_values, single_header
from tests.identity.scopes import http

NAME = b"__Host-convmem"


def cookies(*headers: bytes) -> list[bytes]:
    return cookie_values(http(*((b"cookie", header) for header in headers)), NAME)


@pytest.mark.parametrize(
    "prefix", [b"\xa0", b"\x85", b"\x0b", b"\x0c", b"\x1c", b"\r", b"\n", b"\x00", b"\xe2\x80\x80", b"\xc2\xa0", b"$", b"_"]
)
def test_a_name_with_anything_in_front_is_another_cookie(prefix):
    """Decoding and `str.strip` let such a pair replace the __Host- cookie in known frameworks."""
    assert cookies(NAME + b"=good; " + prefix + NAME + b"=evil") == [b"good"]


@pytest.mark.parametrize(
    "name", [b"__host-convmem", b"__HOST-CONVMEM", NAME + b" ", NAME + b"\xa0", b'"' + NAME + b'"', b"", b"__Host-convmem%20"]
)
def test_only_the_exact_name_counts(name):
    """A name that a proxy or a browser writes differently was not set under our rules."""
    assert cookies(name + b"=evil") == []


def test_spaces_and_tabs_around_a_pair_are_dropped():
    """They are the only optional whitespace in a cookie string."""
    assert cookies(b"a=1;\t " + NAME + b"=good \t;b=2") == [b"good"]


def test_nothing_is_unquoted_or_decoded():
    """A quoted value may hold a semicolon for one parser and end there for another."""
    assert cookies(NAME + b'="a;b"; ' + NAME + b"=%41") == [b'"a', b"%41"]


def test_every_duplicate_is_returned_and_split_headers_are_one_list():
    """Which of two is right is decided by their signatures, not by their order; HTTP/2 may send a header for each pair."""
    assert cookies(NAME + b"=1; " + NAME + b"=2", NAME + b"=3") == [b"1", b"2", b"3"]


def test_a_pair_without_an_equals_sign_is_no_cookie_of_ours():
    """It has no value to be verified."""
    assert cookies(NAME) == []


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=6), st.binary(max_size=12))
def test_the_value_found_is_exactly_the_one_under_the_name(others, value):
    """No neighbour, whatever its bytes, adds to, hides or changes the value, unless it spells the very pair."""
    value = value.replace(b";", b"").strip(b" \t")
    around = [(name.replace(b";", b""), other.replace(b";", b"")) for name, other in others]
    around = [(name, other) for name, other in around if name.lstrip(b" \t").partition(b"=")[0] != NAME]
    pairs = [name + b"=" + other for name, other in around]
    assert cookies(b"; ".join([*pairs, NAME + b"=" + value, *pairs])) == [value]


def test_a_header_that_came_twice_is_an_error_even_when_equal():
    """Servers deliver both, frameworks take the first or the last: the gap is used for smuggling."""
    with pytest.raises(InvalidIdentity, match="came 2 times"):
        single_header(http((b"x-session-id", b"a"), (b"x-session-id", b"a")), b"x-session-id")


def test_an_underscore_is_never_a_dash():
    """Servers pass X_Session_ID on as a header of its own; folding it would let it replace the one a proxy checked."""
    scope = http((b"x_session_id", b"evil"))
    assert single_header(scope, b"x-session-id") is None
    assert single_header(http((b"x-session-id", b"good"), (b"x_session_id", b"evil")), b"x-session-id") == b"good"


def test_query_names_are_decoded_before_they_are_compared():
    """A framework sees sess%69on as session; a duplicate must not hide behind its spelling."""
    assert query_values(http(query=b"session=a&sess%69on=b&x=c&session"), b"session") == [b"a", b"b", b""]


def test_a_scope_without_query_has_no_parameters():
    """Test clients leave optional keys out."""
    scope = http()
    del scope["query_string"]
    assert query_values(scope, b"session") == []

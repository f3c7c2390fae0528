"""What a JSON value has beyond another one, and the value again."""

from hypothesis import given, settings, strategies

from convmem import rest_of, with_rest

JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers(-2, 2) | strategies.floats(-1, 1) | strategies.sampled_from("ab"),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(JSON, JSON)
def test_the_value_comes_back_from_whatever_is_written(value, written):
    """Types too; and equal values have no rest."""
    rest = rest_of(value, written)
    assert with_rest(written, rest) == value
    assert rest_of(with_rest(written, rest), value) is None
    assert (rest is None) == (rest_of(written, value) is None)


def test_only_what_differs_is_in_it():
    """A picture that is written from the message is not stored a second time beside it."""
    picture = "AAAA" * 1000
    value = {"type": "image", "url": picture, "detail": "low"}
    assert rest_of([value, {"x": 1}], [{"type": "image", "url": picture, "size": 3}, {"x": True}]) == {
        "each": [{"has": {"detail": {"is": "low"}}, "lacks": ["size"]}, {"has": {"x": {"is": 1}}}]
    }


def test_what_comes_out_of_a_rest_is_new():
    """Who changes it has not changed what is stored."""
    rest = rest_of({"deep": [1]}, {})
    with_rest({}, rest)["deep"].append(2)
    assert with_rest({}, rest) == {"deep": [1]}

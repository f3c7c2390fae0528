"""What a JSON value has beyond another one: for adapters, which store beside a message only what is not written from it anyway.

None
    The two are equal.
``{"is": value}``
    This, whatever the other one is.
``{"has": {key: rest}, "lacks": [key]}``
    An object with these keys on top, or in place of the other's, and without those.
``{"each": [rest, ...]}``
    A list of the same length.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any


def rest_of(value: Any, written: Any) -> dict[str, Any] | None:
    """Return what `with_rest` needs to make `value` of what is written."""
    if isinstance(value, dict) and isinstance(written, dict):
        return _rest_of_object(value, written)
    if isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        each = [rest_of(one, other) for one, other in zip(value, written, strict=True)]
        return {"each": each} if any(rest is not None for rest in each) else None
    return None if value == written and type(value) is type(written) else {"is": value}


def with_rest(written: Any, rest: dict[str, Any] | None) -> Any:
    """Return the value; new objects, as far as they came out of the rest."""
    if rest is None:
        return written
    if "is" in rest:
        return deepcopy(rest["is"])  # what a framework changes in its messages is not changed in the conversation
    if "each" in rest:
        return [with_rest(other, one) for other, one in zip(written, rest["each"], strict=True)]
    made = {key: value for key, value in written.items() if key not in rest.get("lacks", ())}
    return made | {key: with_rest(made.get(key), one) for key, one in rest.get("has", {}).items()}


def _rest_of_object(value: dict[str, Any], written: dict[str, Any]) -> dict[str, Any] | None:
    has: dict[str, Any] = {}
    for key, item in value.items():
        rest = rest_of(item, written[key]) if key in written else {"is": item}
        if rest is not None:
            has[key] = rest
    lacks = [key for key in written if key not in value]
    return ({"has": has} if has else {}) | ({"lacks": lacks} if lacks else {}) or None

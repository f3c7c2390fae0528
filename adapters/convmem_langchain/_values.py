"""Values that LangChain messages carry beside what is said, in a form that can be stored.

JSON values, bytes, and floats that are not finite stay as they are. The rest of what frameworks and tools commonly leave in
metadata and artifacts is a dict with the key ``lc:type``: tuples, sets, dates, decimals, UUIDs, documents, and dicts that have
other keys than text, or that key. Anything else is refused with the name of its field; nothing is changed silently.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from langchain_core.documents import Document

from convmem import InvalidMessage

_TAG = "lc:type"


def pack(value: object, field: str) -> Any:  # noqa: PLR0911 - one for each kind of value
    """Return the storable form of a value.

    Text, numbers and booleans of a subclass, such as members of an enumeration of strings, become plain ones; they stay equal.

    Raises:
        InvalidMessage: There is none; `field` and what is below it are named.
    """
    match value:
        case None | bool() | bytes():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
    kind = type(value)
    if isinstance(value, list):
        return _items(value, field)
    if isinstance(value, dict):
        return _dict(value, field)
    if kind in _NAMES:
        return {_TAG: _NAMES[kind], "value": _PACKERS[_NAMES[kind]](value, field)}
    reason = f"a {kind.__module__}.{kind.__qualname__} cannot be stored and come back equal; put its JSON form there instead"
    raise InvalidMessage(field, reason)


def plain(value: object, field: str) -> Any:
    """Return a JSON value as plain Python.

    Raises:
        InvalidMessage: It is none; `field` and what is below it are named.
    """
    if isinstance(value, list):
        return [plain(item, f"{field}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {str.__str__(key): plain(item, f"{field}.{key}") for key, item in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return pack(value, field)
    reason = f"a {type(value).__name__} is no JSON; what a model wants called has JSON arguments"
    raise InvalidMessage(field, reason)


def unpack(value: Any) -> Any:
    """Return what `pack` was given."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind is None:
        return {key: unpack(item) for key, item in value.items()}
    return _UNPACKERS[kind](value["value"])


def _items(values: Any, field: str) -> list[Any]:
    return [pack(item, f"{field}[{i}]") for i, item in enumerate(values)]


def _dict(value: dict[Any, Any], field: str) -> dict[str, Any]:
    if all(isinstance(key, str) for key in value) and _TAG not in value:
        return {str.__str__(key): pack(item, f"{field}.{key}") for key, item in value.items()}
    return {_TAG: "dict", "value": [[pack(key, f"{field} (a key)"), pack(item, f"{field}.{key}")] for key, item in value.items()]}


def _document(value: Document, field: str) -> dict[str, Any]:
    return {"id": value.id, "page_content": value.page_content, "metadata": pack(value.metadata, f"{field}.metadata")}


_NAMES: dict[type, str] = {
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    datetime: "datetime",
    date: "date",
    time: "time",
    timedelta: "timedelta",
    Decimal: "decimal",
    UUID: "uuid",
    Document: "document",
}
_PACKERS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("tuple", "set", "frozenset"), _items),
    **dict.fromkeys(("datetime", "date", "time"), lambda value, _field: value.isoformat()),
    "timedelta": lambda value, _field: [value.days, value.seconds, value.microseconds],
    **dict.fromkeys(("decimal", "uuid"), lambda value, _field: str(value)),
    "document": _document,
}
_UNPACKERS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda pairs: {unpack(key): unpack(item) for key, item in pairs},
    "tuple": lambda items: tuple(map(unpack, items)),
    "set": lambda items: set(map(unpack, items)),
    "frozenset": lambda items: frozenset(map(unpack, items)),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "decimal": Decimal,
    "uuid": UUID,
    "document": lambda fields: Document(**{**fields, "metadata": unpack(fields["metadata"])}),
}

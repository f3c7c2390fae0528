"""LangChain's messages as its histories store them, for imports: ``{"type": …, "data": …}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import messages_from_dict

from convmem import InvalidMessage, Message, Role
from convmem_langchain._messages import _ROLES, from_langchain


def role_of(document: Any) -> Role | None:
    """Return who speaks in a stored message; None when that cannot be said."""
    if not isinstance(document, dict):
        return None
    kind, data = document.get("type"), document.get("data")
    said = data.get("role") if kind == "chat" and isinstance(data, dict) else kind
    return _ROLES.get(said) if isinstance(said, str) else None


def from_stored(documents: Sequence[Any]) -> list[Message]:
    """Return stored messages as convmem's, one for each.

    Raises:
        InvalidMessage: One is no message of LangChain, or cannot be stored.
    """
    try:
        messages = messages_from_dict(list(documents))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        field = "document"
        raise InvalidMessage(field, f"it is no message of LangChain ({type(error).__name__})") from error
    return from_langchain(messages)

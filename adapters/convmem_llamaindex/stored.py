"""LlamaIndex's messages as its chat stores keep them, for imports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from convmem import InvalidMessage, Message, Role
from convmem_llamaindex._messages import _ROLES, from_llamaindex

_ROLE_OF = {role.value: neutral for role, neutral in _ROLES.items()}


def role_of(document: Any) -> Role | None:
    """Return who speaks in a stored message; None when that cannot be said."""
    said = document.get("role") if isinstance(document, dict) else None
    return _ROLE_OF.get(said) if isinstance(said, str) else None


def from_stored(documents: Sequence[Any]) -> list[Message]:
    """Return stored messages as convmem's, one for each.

    Raises:
        InvalidMessage: One is no message of LlamaIndex, or cannot be stored.
    """
    try:
        messages = [ChatMessage.model_validate(document) for document in documents]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        field = "document"
        raise InvalidMessage(field, f"it is no message of LlamaIndex ({type(error).__name__})") from error
    return from_llamaindex(messages)

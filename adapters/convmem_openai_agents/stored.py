"""Items of the OpenAI Agents SDK as its sessions store them, for imports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convmem import Message, Role
from convmem_openai_agents._messages import _role, from_items


def role_of(document: Any) -> Role | None:
    """Return who speaks in a stored item; None when that cannot be said."""
    return _role(document) if isinstance(document, dict) else None


def from_stored(documents: Sequence[Any]) -> list[Message]:
    """Return stored items as convmem's messages; what a model said at once is one.

    Raises:
        InvalidMessage: One is no item, or cannot be stored.
    """
    return from_items(documents)

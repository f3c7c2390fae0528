"""Conversation memory for any ASGI app: whose conversation this is, loaded before the handler, stored before the last byte.

The public names are imported when they are first used, so that importing convmem costs next to nothing and loads no driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from convmem.access import (
        conversations as conversations,
        current_conversation as current_conversation,
        fork as fork,
        get_conversation as get_conversation,
        new_session_id as new_session_id,
        open_conversation as open_conversation,
        read_conversation as read_conversation,
    )
    from convmem.config import Settings as Settings, open_store as open_store
    from convmem.conversation import Conversation as Conversation
    from convmem.exceptions import (
        ConfigurationError as ConfigurationError,
        ConversationBusy as ConversationBusy,
        ConversationConflict as ConversationConflict,
        ConversationFenced as ConversationFenced,
        ConversationGone as ConversationGone,
        ConversationNotLoaded as ConversationNotLoaded,
        ConvmemError as ConvmemError,
        CookieNotSent as CookieNotSent,
        CorruptEntry as CorruptEntry,
        CounterFailed as CounterFailed,
        CrossSite as CrossSite,
        ForeignOrigin as ForeignOrigin,
        HistoryExpired as HistoryExpired,
        HistoryLost as HistoryLost,
        IdempotencyKeyReused as IdempotencyKeyReused,
        IdentityOrderError as IdentityOrderError,
        InvalidIdempotencyKey as InvalidIdempotencyKey,
        InvalidIdentity as InvalidIdentity,
        InvalidMessage as InvalidMessage,
        LimitExceeded as LimitExceeded,
        NoConversation as NoConversation,
        PrincipalConflict as PrincipalConflict,
        SessionNotTrusted as SessionNotTrusted,
        SourceUnreadable as SourceUnreadable,
        StoreUnavailable as StoreUnavailable,
        TurnClosed as TurnClosed,
        UnknownConversation as UnknownConversation,
        UnknownRevision as UnknownRevision,
        VisitorTooLate as VisitorTooLate,
    )
    from convmem.export import (
        export_conversation as export_conversation,
        export_owner as export_owner,
        export_tenant as export_tenant,
    )
    from convmem.housekeeping import (
        Receipt as Receipt,
        delete_owner as delete_owner,
        delete_tenant as delete_tenant,
        prune as prune,
    )
    from convmem.identity import (
        Identity as Identity,
        Resolver as Resolver,
        from_callable as from_callable,
        from_header as from_header,
        from_path as from_path,
        from_query as from_query,
        from_user as from_user,
        from_visitor as from_visitor,
    )
    from convmem.importing import Imported as Imported, import_conversations as import_conversations
    from convmem.keys import SessionKey as SessionKey
    from convmem.messages import (
        AudioPart as AudioPart,
        Citation as Citation,
        Edit as Edit,
        FilePart as FilePart,
        ImagePart as ImagePart,
        Message as Message,
        Note as Note,
        Part as Part,
        ReasoningPart as ReasoningPart,
        Role as Role,
        TextPart as TextPart,
        ToolCall as ToolCall,
    )
    from convmem.middleware import ConversationMiddleware as ConversationMiddleware
    from convmem.rests import rest_of as rest_of, with_rest as with_rest
    from convmem.sight import Said as Said
    from convmem.sources.base import LeftOut as LeftOut
    from convmem.stores.base import Store as Store
    from convmem.stores.memory import MemoryStore as MemoryStore
    from convmem.stores.postgres import PostgresStore as PostgresStore
    from convmem.stores.redis import RedisStore as RedisStore
    from convmem.stores.sqlite import SQLiteStore as SQLiteStore
    from convmem.windows import Window as Window

_HOMES = {
    "convmem.access": (
        "conversations",
        "current_conversation",
        "fork",
        "get_conversation",
        "new_session_id",
        "open_conversation",
        "read_conversation",
    ),
    "convmem.config": ("Settings", "open_store"),
    "convmem.conversation": ("Conversation",),
    "convmem.exceptions": (
        "ConfigurationError",
        "ConversationBusy",
        "ConversationConflict",
        "ConversationFenced",
        "ConversationGone",
        "ConversationNotLoaded",
        "ConvmemError",
        "CorruptEntry",
        "CookieNotSent",
        "CounterFailed",
        "CrossSite",
        "ForeignOrigin",
        "HistoryExpired",
        "HistoryLost",
        "IdempotencyKeyReused",
        "IdentityOrderError",
        "InvalidIdempotencyKey",
        "InvalidIdentity",
        "InvalidMessage",
        "LimitExceeded",
        "NoConversation",
        "PrincipalConflict",
        "SessionNotTrusted",
        "SourceUnreadable",
        "StoreUnavailable",
        "TurnClosed",
        "UnknownConversation",
        "UnknownRevision",
        "VisitorTooLate",
    ),
    "convmem.export": ("export_conversation", "export_owner", "export_tenant"),
    "convmem.housekeeping": ("Receipt", "delete_owner", "delete_tenant", "prune"),
    "convmem.identity": ("Identity", "Resolver", "from_callable", "from_header", "from_path", "from_query", "from_user", "from_visitor"),
    "convmem.importing": ("Imported", "import_conversations"),
    "convmem.keys": ("SessionKey",),
    "convmem.messages": (
        "AudioPart",
        "Citation",
        "Edit",
        "FilePart",
        "ImagePart",
        "Message",
        "Note",
        "Part",
        "ReasoningPart",
        "Role",
        "TextPart",
        "ToolCall",
    ),
    "convmem.middleware": ("ConversationMiddleware",),
    "convmem.rests": ("rest_of", "with_rest"),
    "convmem.sight": ("Said",),
    "convmem.sources.base": ("LeftOut",),
    "convmem.stores.base": ("Store",),
    "convmem.stores.memory": ("MemoryStore",),
    "convmem.stores.postgres": ("PostgresStore",),
    "convmem.stores.redis": ("RedisStore",),
    "convmem.stores.sqlite": ("SQLiteStore",),
    "convmem.windows": ("Window",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = list(_HOME_OF)


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        msg = f"module 'convmem' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted([*globals(), *_HOME_OF])

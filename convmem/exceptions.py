"""Every error convmem raises, each with the HTTP answer it becomes.

An error carries its facts as attributes, so nobody parses a message; the driver's own error is its ``__cause__``.
"""

from __future__ import annotations

from typing import ClassVar


class ConvmemError(Exception):
    """The base of all errors of this package.

    Attributes:
        status: The HTTP status the middleware answers with when a handler lets the error through.
        code: The problem type, the last part of the ``type`` member of RFC 9457.
        retry_after: Whole seconds after which the same request may work; None when repeating it is of no use.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "convmem_error"
    title: ClassVar[str] = "The conversation could not be used"
    retry_after: int | None = None

    def facts(self) -> dict[str, str | int | float | bool]:
        """Return what a client may read in the problem body beside the standard members."""
        return {}


class ConfigurationError(ConvmemError):
    """A setting cannot work; the message says which one and what to change."""

    status = 503
    code = "configuration"
    title = "The service is not configured"


class StoreUnavailable(ConvmemError):
    """The store did not answer, or answered with an error of its own.

    Attributes:
        store: The store's name, as in its URL scheme.
        operation: The verb that failed.
        unknown: True when the write may have happened all the same; it is repeated with the same entry id.
    """

    status = 503
    code = "store_unavailable"
    title = "The conversation store is not available"
    retry_after = 2

    def __init__(self, store: str, operation: str, reason: str = "", *, unknown: bool = False) -> None:
        """Name the store and the verb; `reason` is the driver's sentence, without secrets."""
        self.store = store
        self.operation = operation
        self.reason = reason
        self.unknown = unknown
        super().__init__(f"The {store} store failed in {operation}" + (f": {reason}" if reason else "."))


class SourceUnreadable(ConvmemError):
    """What an import is to read cannot be read, or is not what it was said to be. What was imported before stays, and is not repeated.

    Attributes:
        place: Where it is, without a password.
        reason: A sentence.
    """

    status = 503
    code = "source_unreadable"
    title = "The conversations cannot be read where they are"

    def __init__(self, place: str, reason: str) -> None:
        """Name the place; `reason` is a sentence without secrets."""
        self.place = place
        self.reason = reason
        super().__init__(f"{place} cannot be read: {reason}.")


class ConversationBusy(ConvmemError):
    """Another turn holds the conversation, and the policy or the waiting time says not to wait longer.

    Attributes:
        running_seconds: How long the other turn has been running, by the store's clock.
        own_turn: True when the turn in the way is the caller's own, so that waiting could never end.
        same_turn: True when it is another try of this very turn, by its ``Idempotency-Key``: what it stores is the answer to come for.
    """

    status = 409
    code = "conversation_busy"
    title = "Another turn of this conversation is still running"

    def __init__(self, running_seconds: float = 0.0, *, retry_after: int = 1, own_turn: bool = False, same_turn: bool = False) -> None:
        """Say how long the other turn has run and when to come back."""
        self.running_seconds = running_seconds
        self.retry_after = retry_after
        self.own_turn = own_turn
        self.same_turn = same_turn
        what = "another try of this turn" if same_turn else "a turn"
        why = "this very turn holds it" if own_turn else f"{what} has been running for {running_seconds:.1f} s"
        super().__init__(f"The conversation is busy: {why}.")

    def facts(self) -> dict[str, str | int | float | bool]:
        """Return the running time, and whether the turn in the way is the caller's own, or this very one."""
        return {"running_seconds": round(self.running_seconds, 1), "own_turn": self.own_turn, "same_turn": self.same_turn}


class InvalidIdempotencyKey(ConvmemError, ValueError):
    """The request names its turn by a key of another form than the header allows; or a job names its turn by an empty one."""

    status = 400
    code = "invalid_idempotency_key"
    title = "The idempotency key cannot be used"


class IdempotencyKeyReused(ConvmemError):
    """The turn this key names came with another request before: with another body, query, path or method."""

    status = 422
    code = "idempotency_key_reused"
    title = "This idempotency key was used for another request"


class ConversationConflict(ConvmemError):
    """Somebody else wrote after this request had loaded; nothing of this turn was stored by the failed write."""

    status = 409
    code = "conversation_conflict"
    title = "The conversation was changed meanwhile"


class ConversationFenced(ConvmemError):
    """This turn lost its lease and another one holds the conversation; its late write was refused."""

    status = 409
    code = "conversation_fenced"
    title = "This turn took too long and another one goes on"


class ConversationGone(ConvmemError):
    """The conversation was deleted while this request was at work; nothing was stored in its next life."""

    status = 410
    code = "conversation_gone"
    title = "The conversation was deleted meanwhile"


class HistoryLost(ConvmemError):
    """The store no longer has what it had acknowledged. Raised once, on evidence; the next request starts from `revision`."""

    status = 409
    code = "history_lost"
    title = "The store lost part of this conversation"

    def __init__(self, message: str, *, revision: str = "") -> None:
        """Say what is missing; `revision` is what the store has now."""
        self.revision = revision
        super().__init__(message)

    def facts(self) -> dict[str, str | int | float | bool]:
        """Return the present revision, from which the next request goes on."""
        return {"revision": self.revision}


class HistoryExpired(ConvmemError):
    """The conversation outlived its time to live. Raised once, on evidence; the next request starts anew."""

    status = 409
    code = "history_expired"
    title = "This conversation has expired"

    def __init__(self, message: str, *, revision: str = "") -> None:
        """Say what expired; `revision` is what the store has now."""
        self.revision = revision
        super().__init__(message)

    def facts(self) -> dict[str, str | int | float | bool]:
        """Return the present revision, from which the next request goes on."""
        return {"revision": self.revision}


class InvalidIdentity(ConvmemError, ValueError):
    """The request names its conversation or its owner in a way that cannot be used; `code` says which rule it broke."""

    status = 400
    code = "invalid_identity"
    title = "The conversation's identity cannot be used"


class SessionNotTrusted(InvalidIdentity):
    """A session id came without an owner, from something that is not a browser on the same site."""

    code = "session_id_not_trusted"
    title = "A session id alone does not say whose conversation it is"


class PrincipalConflict(ConvmemError):
    """Two authenticated principals came with one request, and they differ."""

    status = 401
    code = "principal_conflict"
    title = "Two different principals are signed in"


class CrossSite(ConvmemError):
    """A cross-site request, in which the browser withholds the visitor's cookie, touched a conversation."""

    status = 403
    code = "identity_cross_site"
    title = "The browser withheld the visitor's cookie"


class ForeignOrigin(CrossSite):
    """A page of another origin opened a WebSocket that touched a conversation: its script could read what the browser's user said."""

    code = "foreign_origin"
    title = "A page of another origin opened the WebSocket"


class UnknownConversation(ConvmemError):
    """The id was not handed out to this owner, or nothing is stored at that address; missing and foreign are the same answer."""

    status = 404
    code = "unknown_conversation"
    title = "There is no such conversation"


class UnknownRevision(ConvmemError):
    """The conversation has no such place: the revision is of another one or of an earlier life, or what stood there was cleared."""

    status = 404
    code = "unknown_revision"
    title = "The conversation has no such place"


class LimitExceeded(ConvmemError):
    """A message or a turn is larger than its limit.

    Attributes:
        limit: The setting's name, such as ``CONVMEM_MAX_MESSAGE_BYTES``.
        allowed: Its value.
        actual: What was asked for.
    """

    status = 413
    code = "limit_exceeded"
    title = "The message is too large"

    def __init__(self, limit: str, allowed: int, actual: int) -> None:
        """Name the limit, its value and what was asked for."""
        self.limit = limit
        self.allowed = allowed
        self.actual = actual
        super().__init__(f"{limit} is {allowed}, this is {actual}; raise the setting or send less.")

    def facts(self) -> dict[str, str | int | float | bool]:
        """Return the limit, its value and what was asked for."""
        return {"limit": self.limit, "allowed": self.allowed, "actual": self.actual}


class InvalidMessage(ConvmemError, ValueError):
    """A message holds something that cannot be stored and read back equal.

    Attributes:
        field: Where, as a path such as ``metadata.tags[2]``.
    """

    code = "invalid_message"
    title = "The application built a message that cannot be stored"

    def __init__(self, field: str, reason: str) -> None:
        """Name the field and what is wrong with it."""
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class CounterFailed(ConvmemError):
    """The app's token counter raised, or returned something else than a whole number from 0."""

    code = "counter_failed"
    title = "The application's token counter cannot be used"


class CorruptEntry(ConvmemError):
    """A stored entry cannot be decoded. Raised only by strict reading; otherwise its position is named and the rest loads.

    Attributes:
        position: Where in the log.
    """

    code = "corrupt_entry"
    title = "A stored entry cannot be read"

    def __init__(self, position: int, reason: str) -> None:
        """Name the position and what is wrong there."""
        self.position = position
        self.reason = reason
        super().__init__(f"The entry at position {position} cannot be decoded: {reason}")


class IdentityOrderError(ConvmemError):
    """A user signed in inside the part of the app that convmem wraps, after the owner had been resolved."""

    code = "identity_order"
    title = "The middlewares are in the wrong order"


class NoConversation(ConvmemError):
    """There is no conversation here: no middleware, or a path it does not cover."""

    code = "no_conversation"
    title = "There is no conversation on this path"


class ConversationNotLoaded(ConvmemError):
    """With deferred loading the handler has to ``await conversation.load()`` before it reads or appends."""

    code = "conversation_not_loaded"
    title = "The conversation has not been loaded"


class VisitorTooLate(ConvmemError):
    """A new visitor's conversation was first used when the response had already begun, too late for its cookie."""

    code = "visitor_too_late"
    title = "The conversation was taken after the response had begun"


class CookieNotSent(ConvmemError):
    """The server leaves out the headers of an accepted WebSocket, so a visitor made there could never come back."""

    code = "cookie_not_sent"
    title = "This server cannot hand a new visitor's cookie to a WebSocket"


class TurnClosed(ConvmemError):
    """The turn has ended; ``async with conversation.turn():`` opens another one."""

    code = "turn_closed"
    title = "The turn has ended"

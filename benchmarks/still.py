"""StillStore: a store that does nothing, so that what a request costs is what convmem itself costs; and a request without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Literal

from convmem.identifiers import new_id, new_token
from convmem.identity import KeyRing
from convmem.identity.policy import VisitorPolicy
from convmem.identity.visitor import Visitors, new_visitor_id
from convmem.messages import Message, encode_message, encode_messages
from convmem.stores.base import Appended, Entry, Head, Health, Holder, Lease, Log, Outcome, Page, Store, StoredEntry

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message as Event, Receive, Scope, Send

    from convmem.keys import SessionKey

OK = 200
SECRET = "a secret key of thirty-two bytes"
QUESTION = "What does a turn cost, in the end? " * 6
ANSWER = "Two round trips, and the bytes of what was said. " * 17


class StillStore(Store):
    """A store that has always the same history, and of what it is given keeps the head alone.

    Args:
        turns: How many turns the history has; a load returns as many of them as it is asked for.
    """

    name: ClassVar[str] = "still"
    reach: ClassVar[Literal["process", "host", "network"]] = "process"

    def __init__(self, turns: int = 0) -> None:
        """Make the history."""
        self._epoch = new_token()
        self._entries = tuple(_entry(n, self._epoch) for n in range(1, turns + 1))
        self._head = self._entries[-1].entry.head_at(turns) if turns else Head()
        self._heads: dict[SessionKey, Head] = {}

    async def load(
        self,
        key: SessionKey,
        *,
        turns: int | None = None,
        messages: int | None = None,  # noqa: ARG002 - the benchmark asks in turns
        before: int | None = None,  # noqa: ARG002 - and for one page
        turn: str | None = None,  # noqa: ARG002 - no turn is known by name
        lease: Lease | None = None,
    ) -> Log:
        """Return the newest turns, and give the lease to everybody."""
        entries = self._entries if turns is None else self._entries[-turns:]
        holder = Holder() if lease is None else Holder(lease.token, timedelta(), lease.term)
        return Log(self._heads.get(key, self._head), entries, (), holder)

    async def append(self, key: SessionKey, after: Head, entry: Entry, *, ttl: timedelta | None = None, release: bool = False) -> Appended:  # noqa: ARG002 - it stores nothing
        """Say that it is stored."""
        head = self._heads[key] = entry.head_at(after.n + 1)
        return Appended(Outcome.STORED, head)

    async def renew(self, key: SessionKey, lease: Lease, head: Head) -> bool:  # noqa: ARG002 - it stores nothing
        """Say that it is renewed."""
        return True

    async def release(self, key: SessionKey, token: str) -> None:
        """Do nothing."""

    async def list(
        self,
        owner: str | None,  # noqa: ARG002 - it stores nothing
        *,
        tenant: str | None = "",  # noqa: ARG002 - it stores nothing
        after: str | None = None,  # noqa: ARG002 - it stores nothing
        limit: int = 50,  # noqa: ARG002 - it stores nothing
        written_before: datetime | None = None,  # noqa: ARG002 - it stores nothing
    ) -> Page:
        """Return nothing."""
        return Page()

    async def delete(self, key: SessionKey, *, at: Head | None = None) -> bool:  # noqa: ARG002 - it stores nothing
        """Say that there was nothing."""
        return False

    async def check(self) -> Health:
        """Say what it is."""
        return Health(self.name, "nowhere", "nothing", "none")

    async def aclose(self) -> None:
        """Do nothing."""


def question_and_answer() -> tuple[Message, Message]:
    """Return what one turn appends: 200 bytes said by a user, 800 by the assistant."""
    return Message.user(QUESTION[:200]), Message.assistant(ANSWER[:800])


def turn_of(after: Head, epoch: str = "") -> Entry:
    """Return a whole turn as an entry that follows this head."""
    body = encode_messages(map(encode_message, question_and_answer()))
    return Entry(
        new_id(),
        new_id(),
        new_token(),
        after.epoch or epoch or new_token(),
        body,
        count=2,
        closing=True,
        turns=after.turns + 1,
        start=after.start,
    )


def _entry(n: int, epoch: str) -> StoredEntry:
    return StoredEntry(n, turn_of(Head(epoch, n - 1, "", n - 1), epoch), datetime.now(UTC))


def visitor_cookie() -> bytes:
    """Return a ``Cookie`` header with a visitor's token, among the other cookies a browser sends."""
    policy = VisitorPolicy(secure=False)
    token = Visitors(policy, KeyRing([SECRET.encode()])).sign(new_visitor_id())
    return f"theme=dark; {policy.full_cookie_name}={token}; csrftoken=0123456789abcdef0123456789abcdef".encode()


def request_scope(cookie: bytes, method: str = "POST", path: str = "/chat") -> Scope:
    """Return what a server makes of a browser's request."""
    headers = [
        (b"host", b"localhost:8000"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip, deflate, br"),
        (b"accept-language", b"en-GB,en;q=0.9"),
        (b"content-type", b"application/json"),
        (b"content-length", b"2"),
        (b"sec-fetch-site", b"same-origin"),
        (b"sec-fetch-mode", b"cors"),
        (b"cookie", cookie),
    ]
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": headers, "state": {},
        "client": ("127.0.0.1", 40000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip


_START: Event = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), (b"content-length", b"2")]}
_BODY: Event = {"type": "http.response.body", "body": b"ok"}


async def bare(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - the form of every app
    """Answer, and know of no memory."""
    await send(_START)
    await send(_BODY)


async def reading(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - the form of every app
    """Take the conversation, append nothing, and answer."""
    from convmem import current_conversation

    current_conversation()
    await send(_START)
    await send(_BODY)


async def talking(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - the form of every app
    """Read the window, append a question and its answer, and answer."""
    from convmem import current_conversation

    conversation = current_conversation()
    conversation.messages  # noqa: B018 - reading it is the work
    conversation.append(*question_and_answer())
    await send(_START)
    await send(_BODY)


async def appending(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - the form of every app
    """Append a question and its answer that are made already, and answer: a commit, and nothing else."""
    from convmem import current_conversation

    current_conversation().append(*_SAID)
    await send(_START)
    await send(_BODY)


_SAID = question_and_answer()


async def no_more() -> Event:
    """Receive the end of an empty request."""
    return {"type": "http.request", "body": b"", "more_body": False}


class Sink:
    """Where an answer goes when there is no server.

    Attributes:
        events: How many came.
        status: Of the answer that came last.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.events = self.status = 0

    async def __call__(self, event: Event) -> None:
        """Take one event."""
        self.events += 1
        if event["type"] == "http.response.start":
            self.status = event["status"]


async def ask(app: ASGIApp, scope: Scope, sink: Sink) -> None:
    """Send one request to an app.

    Raises:
        AssertionError: It was not served: what a refusal costs is not what is to be known.
    """
    await app(dict(scope), no_more, sink)
    assert sink.status == OK, sink.status

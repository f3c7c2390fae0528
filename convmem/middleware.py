"""ConversationMiddleware: joins identity, store and conversation to one request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convmem.config import Settings, tiktoken_cache
from convmem.connection import SCOPE_KEY, Services
from convmem.exceptions import ConfigurationError, ConvmemError, StoreUnavailable
from convmem.exchange import Exchange
from convmem.identity import IdentityPolicy, IdentityReader, KeyRing, Resolver, VisitorPolicy, new_session_id, route_path
from convmem.key_record import read_keys, read_or_make_keys
from convmem.problems import problem
from convmem.routes import Routes
from convmem.stores.base import Store
from convmem.tokens import default_counter
from convmem.turns import Ledger, Policy, Rules
from convmem.websocket import WebSocket, refuse
from convmem.windows import Window

_DRAIN_SECONDS = 5.0
logger = logging.getLogger("convmem.middleware")


class _NotAnAgents:
    """Says what to use instead to LangChain's ``create_agent``, which looks here for the hooks of a middleware of its own kind."""

    def __get__(self, instance: object, owner: type) -> NoReturn:
        """Raise what `hasattr` takes for a plain no."""
        msg = "ConversationMiddleware goes around an app; an agent's is another: from convmem_langchain import MemoryMiddleware"
        raise AttributeError(msg)


class ConversationMiddleware:
    """Gives every request its conversation: loaded before the handler runs, stored before the client sees the end.

    Wraps any ASGI app. Constructing it does and checks nothing; the settings are checked when the server starts (lifespan), or
    with the first request where a server has no lifespan: then a wrong setting is a 503 and an error in the log.

    Args:
        app: Any ASGI callable.
        store: Where conversations are kept; it is not closed. None opens the one of the settings, and closes it at shutdown.
        settings: None reads ``CONVMEM_*`` from the environment.
        resolvers: Your own ways to find the owner, the conversation or the tenant; they run before those of the settings.
        window: What part of the history the model sees; None: as the settings say.
        paths: Patterns of the paths that have conversations, ``*`` matches anything; None is every path.
        turns: Patterns of the routes that take the lease, such as ``"POST /chat*"``, or a mapping from pattern to ``wait`` or
            ``reject``; None is POST on `paths`. Elsewhere appending works as long as nobody else writes.
        load: ``deferred`` leaves loading to the handler (``await conversation.load(...)``), everywhere or on a list of patterns.
        state_key: The name at ``request.state``; empty puts nothing there; None: as the settings say.
    """

    wrap_tool_call = _NotAnAgents()

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store | None = None,
        settings: Settings | None = None,
        resolvers: Sequence[Resolver] | None = None,
        window: Window | None = None,
        paths: Sequence[str] | None = None,
        turns: Sequence[str] | Mapping[str, Policy] | None = None,
        load: Sequence[str] | str = "eager",
        state_key: str | None = None,
    ) -> None:
        """Remember what was asked for."""
        self.app = app
        self._given_store = store
        self._given_settings = settings
        self._resolvers = tuple(resolvers or ())
        self._window = window
        self._paths, self._turns, self._load = paths, turns, load
        self._state_key = state_key
        self._services: Services | None = None
        self._opened: Store | None = None
        self._wrong: ConfigurationError | None = None
        self._in_flight: set[asyncio.Task[object]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or WebSocket; other connections pass untouched, and so do OPTIONS and paths without conversations."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        if kind not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            await self.app(scope, receive, send)
            return
        try:
            services = self._services or await self._ready()
        except ConvmemError as error:
            logger.error("%s", error)  # noqa: TRY400 - a sentence, not a traceback
            await _turn_away(error, scope, receive, send)
            return
        path = route_path(scope)
        route = services.routes.find(scope["method"] if kind == "http" else "WEBSOCKET", path)
        if route is None:
            await self.app({**scope, SCOPE_KEY: services.routes}, receive, send)
            return
        if kind == "websocket":
            await WebSocket(services, scope, path, route, receive, send).run(self.app)
            return
        task = asyncio.current_task()
        assert task is not None
        exchange = Exchange(services, scope, path, route, receive, send, task)
        if task in self._in_flight:  # the app calls itself
            await exchange.run(self.app)
            return
        self._in_flight.add(task)
        try:
            await exchange.run(self.app)
        finally:
            self._in_flight.discard(task)

    # Start and stop

    async def _ready(self) -> Services:
        """Return the services, made now when this is the first call; two first calls at once agree on one."""
        if self._services is not None:
            return self._services
        if self._wrong is not None:
            raise self._wrong
        try:
            _need_asyncio()
            settings = self._given_settings or Settings.from_environment()
            given = self._given_store
            store = given or settings.open_store()
            settings.announce(None if given is None else given.reach)
        except ConfigurationError as error:
            self._wrong = error
            raise
        opened = None if given is not None else store
        try:
            services = await self._make(settings, store)
        except BaseException as error:
            await _close(opened)
            self._wrong = error if isinstance(error, ConfigurationError) else None
            raise
        return await self._agree(services, opened)

    async def _agree(self, services: Services, opened: Store | None) -> Services:
        if self._services is not None:
            await _close(opened)
            return self._services
        self._services, self._opened = services, opened
        return services

    async def _make(self, settings: Settings, store: Store) -> Services:
        routes = Routes(self._paths, self._turns, self._load)
        rules = rules_of(settings, self._window)
        policy = identity_policy_of(settings, self._resolvers)
        keyring = await keyring_of(settings, store)
        issued = settings.client_ids == "issued"

        def issue(owner: str, tenant: str) -> str:
            return new_session_id(owner, tenant, keyring=keyring, issued=issued)

        state_key = settings.state_key if self._state_key is None else self._state_key
        degrade = settings.on_store_error == "degrade"
        reader = IdentityReader(policy, keyring)
        idempotency = settings.idempotency_header.lower().encode()
        return Services(Ledger(store, rules), reader, routes, degrade, state_key, settings.debug_headers, issue, idempotency)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check before the app starts, drain before it stops, close after it has stopped."""
        first = await receive()
        try:
            services = await self._ready()
            await _check(services.ledger.store)
        except ConvmemError as error:
            sentence = f"convmem: {error}"
            logger.error("%s", sentence)  # noqa: TRY400 - a sentence, not a traceback
            await self._close()
            await send({"type": "lifespan.startup.failed", "message": sentence})
            return
        started = failed = False
        waiting = [first]

        async def listen() -> Message:
            message = waiting.pop() if waiting else await receive()
            if message["type"] == "lifespan.shutdown":
                await self._drain()
            return message

        async def tell(message: Message) -> None:
            nonlocal started, failed
            started = started or message["type"] == "lifespan.startup.complete"
            failed = failed or message["type"] == "lifespan.startup.failed"
            if message["type"].startswith(("lifespan.shutdown.", "lifespan.startup.failed")):
                await self._close()
            await send(message)

        try:
            await self.app(scope, listen, tell)
        except Exception:
            if started or failed:
                raise
            logger.debug("the app has no lifespan", exc_info=True)
        if not (started or failed):
            await self._stand_in(listen, tell)

    async def _stand_in(self, listen: Receive, tell: Send) -> None:
        """Answer for an app that has no lifespan."""
        await tell({"type": "lifespan.startup.complete"})
        while (await listen())["type"] != "lifespan.shutdown":
            continue
        await tell({"type": "lifespan.shutdown.complete"})

    async def _drain(self) -> None:
        """Let requests in flight end, for a bounded time; some servers stop the worker as soon as their answers are out."""
        here = asyncio.get_running_loop()
        tasks = [task for task in self._in_flight if task.get_loop() is here]
        if tasks:
            await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
        if self._services is not None:
            await self._services.ledger.drain(_DRAIN_SECONDS)

    async def _close(self) -> None:
        opened, self._opened, self._services = self._opened, None, None
        await _close(opened)


async def _turn_away(error: ConvmemError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await refuse(error, scope, receive, send)
        return
    for message in problem(error, [], head=scope["method"] == "HEAD"):
        await send(message)


def _need_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        msg = "convmem runs under asyncio; start the server with an asyncio worker (hypercorn: --worker-class asyncio)."
        raise ConfigurationError(msg) from error


async def _close(store: Store | None) -> None:
    if store is not None:
        await store.aclose()


async def _check(store: Store) -> None:
    """A file that cannot be used is a wrong setting; a server that is down may come back."""
    try:
        health = await store.check()
    except StoreUnavailable as error:
        if store.reach != "network":
            msg = f"CONVMEM_STORE cannot be used: {error.reason}"
            raise ConfigurationError(msg) from error
        logger.warning("the store does not answer yet: %s", error)
    else:
        logger.info("store %s at %s; an acknowledged turn survives %s", health.store, health.location, health.durability)


def rules_of(settings: Settings, window: Window | None = None) -> Rules:
    """Return the rules of turns that the settings make."""
    window = window or Window(turns=settings.window_turns, messages=settings.window_messages, tokens=settings.window_tokens)
    if window.tokens is not None and window.counter is None:
        window = replace(window, counter=default_counter(tiktoken_cache()))
    return Rules(
        window=window,
        ttl=settings.ttl,
        concurrency=settings.concurrency,
        turn_wait=settings.turn_wait,
        lease=settings.lease,
        turn_max=settings.turn_max,
        max_waiting=settings.max_waiting,
        max_message_bytes=settings.max_message_bytes,
        max_turn_bytes=settings.max_turn_bytes,
        max_turn_messages=settings.max_turn_messages,
    )


def identity_policy_of(settings: Settings, resolvers: Sequence[Resolver] = ()) -> IdentityPolicy:
    """Return the identity policy that the settings make."""
    return IdentityPolicy(
        who=settings.identity,
        session_from=settings.session_from,
        session_header=settings.session_header,
        trust_session_header=settings.trust_session_header,
        client_ids=settings.client_ids,
        visitor=VisitorPolicy(
            cookie_name=settings.cookie_name,
            secure="auto" if settings.cookie_secure == "auto" else settings.cookie_secure == "always",
            samesite=settings.cookie_samesite,
            max_age=settings.cookie_max_age,
            path=settings.cookie_path,
            domain=settings.cookie_domain,
            partitioned=settings.cookie_partitioned,
        ),
        resolvers=resolvers,
        websocket_origins=settings.websocket_origins,
    )


async def keyring_of(settings: Settings, store: Store) -> KeyRing:
    """Return the signing keys: those of the environment, or the ones kept in the store."""
    if settings.key_source(store.reach) == "environment":
        return KeyRing(settings.signing_keys)

    async def refresh() -> list[bytes]:
        return await read_keys(store)

    return KeyRing(await read_or_make_keys(store), refresh=refresh)

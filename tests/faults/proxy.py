"""A TCP proxy that breaks connections on demand, and counts what passes: what a network does, without root."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self

_CHUNK = 2**16
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for zero seconds: closing sends RST, not FIN (socket(7))."""


class Proxy:
    """Stands between clients and one server, on a free port of the loopback.

    Until a fault is planted it passes every byte on, and an orderly end as one. `mend` takes all faults away; connections that were
    broken stay broken.

    Args:
        host: Of the server behind it.
        port: Of the server behind it.
        context: Ends TLS here, so that a server without TLS can be reached by it.

    Attributes:
        delay: Seconds every chunk waits, in each direction; chunks keep their order.
        connections: How many clients have connected so far, those that were turned away included.
        connected_at: When each of them did, in seconds of the monotonic clock.
        sent: Bytes that went from clients to the server.
        received: Bytes that went from the server to clients.
        round_trips: How often a client spoke after it had been answered, or for the first time.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None = None) -> None:
        """Know the server; listen when entered."""
        self.delay = 0.0
        self.connections = 0
        self.connected_at: list[float] = []
        self.sent = self.received = self.round_trips = 0
        self._upstream, self._context = (host, port), context
        self._server: asyncio.Server | None = None
        self._port = 0
        self._open: set[_Connection] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._turns_away = False
        self._replies_left: int | None = None

    @property
    def port(self) -> int:
        """Where it listens, or did before `refuse`."""
        return self._port

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    async def __aenter__(self) -> Self:
        """Listen."""
        await self._listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop listening and break what is open."""
        await self.refuse()

    def count_anew(self) -> None:
        """Count bytes and round trips from zero."""
        self.sent = self.received = self.round_trips = 0

    # Faults

    def stall(self) -> None:
        """Pass nothing on and close nothing, as a host that hangs or a link that drops packets; `mend` passes on what waits."""
        self._flows.clear()

    def silence(self) -> None:
        """Let each open connection stay open and drop what it carries, for good, as a firewall that forgot it; new ones are served."""
        for connection in self._open:
            connection.silent = True

    def cut_reply_after(self, number: int) -> None:
        """Pass on so many bytes of replies, counted over all connections from now, then reset the connection. Once."""
        self._replies_left = number

    def reset(self) -> None:
        """Reset all open connections now; new ones are served."""
        for connection in list(self._open):
            connection.reset()

    def turn_away(self) -> None:
        """Reset all connections, and each new one as soon as it is made; it is counted."""
        self._turns_away = True
        self.reset()

    async def refuse(self) -> None:
        """Reset all connections and listen no more: a connect is refused by the host, and not counted."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()
        for connection in list(self._open):
            await connection.ended.wait()

    async def mend(self) -> None:
        """Take all faults away."""
        self.delay = 0.0
        self._turns_away = False
        self._replies_left = None
        self._flows.set()
        if self._server is None:
            await self._listen()

    # Passing on

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._context)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.connected_at.append(time.monotonic())
        connection = _Connection(writer)
        self._open.add(connection)
        try:
            if self._turns_away:
                raise ConnectionResetError
            server_reader, server_writer = await asyncio.open_connection(*self._upstream)
            connection.take(server_writer)
            await connection.carry(self._requests(connection, reader, server_writer), self._replies(connection, server_reader, writer))
        except OSError:
            connection.reset()
        finally:
            connection.close()
            self._open.discard(connection)
            connection.ended.set()

    async def _requests(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if connection.silent:
                continue
            self.sent += len(data)
            if not connection.waits:
                connection.waits = True
                self.round_trips += 1
            await self._hold()
            writer.write(data)
            await writer.drain()
        await self._hold()
        writer.write_eof()

    async def _replies(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._hold()
            if connection.silent:
                continue
            cut = self._replies_left is not None and len(data) > self._replies_left
            if self._replies_left is not None:
                data = data[: self._replies_left]
                self._replies_left -= len(data)
            connection.waits = False
            self.received += len(data)
            writer.write(data)
            await writer.drain()
            if cut:
                self._replies_left = None
                await asyncio.sleep(0.01)  # what was passed on is to arrive before the reset
                raise ConnectionResetError
        await self._hold()
        if writer.can_write_eof():  # TLS knows no half of an end
            writer.write_eof()
        else:
            writer.close()

    async def _hold(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._flows.wait()


class _Connection:
    """One client's connection and the one behind it; both are reset together."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.waits = self.silent = False
        self.ended = asyncio.Event()
        self._writers = [writer]
        self._work: list[asyncio.Task[None]] = []
        self._broken = False

    def take(self, writer: asyncio.StreamWriter) -> None:
        """Add the connection to the server; it is reset at once when the client's has been."""
        self._writers.append(writer)
        if self._broken:
            raise ConnectionResetError

    async def carry(self, *directions: Coroutine[Any, Any, None]) -> None:
        """Pass on in both directions until both have ended, or one has failed; an orderly end of one leaves the other open.

        Raises:
            OSError: One has failed.
        """
        self._work = [asyncio.ensure_future(direction) for direction in directions]
        done, _ = await asyncio.wait(self._work, return_when=asyncio.FIRST_EXCEPTION)
        for task in self._work:
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        for task in done:
            if not task.cancelled():
                task.result()

    def close(self) -> None:
        """Close both sides in order, unless they have been reset."""
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        """Send RST to both sides and stop passing on."""
        self._broken = True
        for task in self._work:
            task.cancel()
        for writer in self._writers:
            sock: socket.socket | None = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

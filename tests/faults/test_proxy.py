"""The proxy breaks what it is told to break, and nothing else; its counts are what a wire would show."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from typing import Self

import pytest
import pytest_asyncio

from tests.faults.proxy import Proxy
from tests.faults.waiting import until
from tests.servers.processes import HOST
from tests.wheels.certificate import certificate


@pytest.fixture
def arrived() -> list[bytes]:
    """Return the lines that reached the server."""
    return []


@pytest_asyncio.fixture
async def proxy(arrived: list[bytes]) -> AsyncIterator[Proxy]:
    """Return a proxy in front of a server that answers each line with itself, in capitals."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                arrived.append(line)
                writer.write(line.upper())
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


class Client:
    """One connection."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.writer.transport.abort()

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line)
        return await self.reader.readline()


@pytest.mark.asyncio
async def test_without_a_fault_every_byte_passes_and_is_counted(proxy):
    """A round trip is a question after an answer: bytes alone do not say how often a store was asked."""
    async with Client(proxy) as client:
        for _ in range(3):
            assert await client.ask(b"hello\n") == b"HELLO\n"
        assert (proxy.sent, proxy.received, proxy.round_trips, proxy.connections, proxy.open) == (18, 18, 3, 1, 1)
        client.writer.write(b"two\n")
        client.writer.write(b"lines\n")
        assert await client.reader.readline() + await client.reader.readline() == b"TWO\nLINES\n"
        assert proxy.round_trips in {4, 5}


@pytest.mark.asyncio
async def test_a_delay_is_waited_for_in_each_direction(proxy):
    """And nothing else changes."""
    proxy.delay = 0.05
    async with Client(proxy) as client:
        began = time.monotonic()
        assert await client.ask(b"hello\n") == b"HELLO\n"
        assert time.monotonic() - began >= 0.1


@pytest.mark.asyncio
async def test_a_stalled_link_is_silent_and_goes_on_where_it_was(proxy):
    """Nobody is told: only a timeout of one's own helps."""
    async with Client(proxy) as client:
        proxy.stall()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.ask(b"hello\n"), 0.1)
        await proxy.mend()
        assert await client.reader.readline() == b"HELLO\n"


@pytest.mark.asyncio
async def test_what_a_client_sent_before_it_left_arrives(proxy, arrived):
    """As on a real link: the server does what nobody waits for any more."""
    async with Client(proxy) as client:
        await client.ask(b"first\n")
        proxy.stall()
        client.writer.write(b"second\n")
        client.writer.close()
        await asyncio.sleep(0.05)
    assert arrived == [b"first\n"]
    await proxy.mend()
    await until(lambda: proxy.open == 0)
    assert arrived == [b"first\n", b"second\n"]


@pytest.mark.asyncio
async def test_a_reply_is_cut_after_so_many_bytes_and_the_request_has_arrived(proxy):
    """This is the unknown outcome: done, and nobody was told. The next connection is served."""
    async with Client(proxy) as client:
        assert await client.ask(b"first\n") == b"FIRST\n"
        proxy.cut_reply_after(3)
        client.writer.write(b"second\n")
        assert await client.reader.readexactly(3) == b"SEC"
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.reader.readexactly(1)
    async with Client(proxy) as client:
        assert await client.ask(b"third\n") == b"THIRD\n"


@pytest.mark.asyncio
async def test_a_reply_cut_after_nothing_never_begins(proxy):
    """The request is done all the same."""
    async with Client(proxy) as client:
        proxy.cut_reply_after(0)
        client.writer.write(b"hello\n")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.reader.readexactly(1)
    assert proxy.sent == 6
    assert proxy.received == 0


@pytest.mark.asyncio
async def test_a_reset_breaks_what_is_open_and_serves_what_comes(proxy):
    """As when a load balancer forgets its connections."""
    async with Client(proxy) as old:
        await old.ask(b"hello\n")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await old.reader.readexactly(1)
        async with Client(proxy) as new:
            assert await new.ask(b"hello\n") == b"HELLO\n"


@pytest.mark.asyncio
async def test_who_is_turned_away_is_counted(proxy):
    """Only so can a storm of reconnects be seen."""
    proxy.turn_away()
    for _ in range(3):
        async with Client(proxy) as client:
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await client.reader.readexactly(1)
    assert proxy.connections == 3
    await proxy.mend()
    async with Client(proxy) as client:
        assert await client.ask(b"hello\n") == b"HELLO\n"


@pytest.mark.asyncio
async def test_a_refused_port_is_refused_and_comes_back(proxy):
    """The same port, as a server that is started again."""
    async with Client(proxy) as client:
        await client.ask(b"hello\n")
        await proxy.refuse()
        with pytest.raises(ConnectionResetError):
            await client.reader.readexactly(1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    await proxy.mend()
    async with Client(proxy) as client:
        assert await client.ask(b"hello\n") == b"HELLO\n"


@pytest.mark.asyncio
async def test_a_client_that_leaves_leaves_nothing_behind(proxy):
    """Or a test that counts open connections counts those of the test before."""
    async with Client(proxy) as client:
        await client.ask(b"hello\n")
    await until(lambda: proxy.open == 0, seconds=2)


@pytest.mark.asyncio
async def test_a_silent_connection_stays_open_and_carries_nothing_ever_again(proxy, arrived):
    """What a firewall does that forgot it; neither side is told, and a new connection works."""
    async with Client(proxy) as silent, Client(proxy):
        await silent.ask(b"one\n")
        proxy.silence()
        silent.writer.write(b"two\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent.reader.read(1), 0.1)
        assert proxy.open == 2
        await proxy.mend()
        silent.writer.write(b"three\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(silent.reader.read(1), 0.1)
    async with Client(proxy) as other:
        assert await other.ask(b"four\n") == b"FOUR\n"
    assert arrived == [b"one\n", b"four\n"]


@pytest.mark.asyncio
async def test_it_ends_tls_in_front_of_a_server_that_has_none(tmp_path):
    """The wheels' servers have none; an end of the server's is an end for the client too."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()

    file, context = certificate(tmp_path)
    server = await asyncio.start_server(answer, HOST, 0)
    async with server, Proxy(HOST, server.sockets[0].getsockname()[1], context) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port, ssl=ssl.create_default_context(cafile=file))
        writer.write(b"one\n")
        assert await asyncio.wait_for(reader.read(), 2) == b"ONE\n"
        writer.transport.abort()

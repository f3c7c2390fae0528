"""A proxy in front of a server: it counts, and it delays, cuts, refuses or encrypts when a test says so."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.servers.processes import HOST


class Proxy:
    """A TCP proxy on a free port of the loopback.

    Args:
        port: Of the server behind it.
        context: Ends TLS here, so that a server without TLS can be reached by it.

    Attributes:
        sent: Bytes from clients to the server.
        received: Bytes from the server to clients.
        trips: How often a client spoke again after the server had.
        cut: Close a connection with a reset as soon as the server has sent so many bytes more; None never.
        refuses: Whether new connections are closed at once.
    """

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._behind, self._context = port, context
        self.sent = self.received = self.trips = 0
        self.cut: int | None = None
        self.refuses = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._silenced = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def reset(self) -> None:
        """Count from zero."""
        self.sent = self.received = self.trips = 0

    def silence(self) -> None:
        """Let every connection there is stay open and carry nothing any more, as a firewall that forgot it does."""
        self._silenced += 1

    def drop(self) -> None:
        """Reset every connection there is."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0, ssl=self._context)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            if self.refuses:
                return
            back, there = await asyncio.open_connection(HOST, self._behind)
            self._writers.add(there)
            spoke = [True]
            await asyncio.gather(self._to_server(reader, there, spoke), self._to_client(back, writer, spoke))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in (writer, there):
                if each is not None:
                    self._writers.discard(each)
                    each.transport.abort()
            self._tasks.discard(task)

    async def _to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, spoke: list[bool]) -> None:
        began = self._silenced
        while data := await reader.read(65536):
            if began < self._silenced:
                continue
            self.sent += len(data)
            if spoke[0]:
                self.trips += 1
                spoke[0] = False
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    async def _to_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, spoke: list[bool]) -> None:
        while data := await reader.read(65536):
            self.received += len(data)
            spoke[0] = True
            if self.cut is not None:
                data, self.cut = data[: self.cut], self.cut - len(data)
                writer.write(data)
                if self.cut <= 0:
                    self.cut = None
                    writer.transport.abort()
                    return
            else:
                writer.write(data)
            await writer.drain()
        writer.transport.abort()


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return a certificate of the loopback that signs itself, and what a server needs to show it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "convmem test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, private)
    return cert, context

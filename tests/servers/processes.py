"""A server in a process of its own: started on a free port of the loopback, killed as hard as a test likes."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HOST = "127.0.0.1"
PYTHON = sys.executable
PATIENCE = 90.0
"""Seconds to wait for what has to come: no promise, only when a test gives up, and far more than the slowest machine needs."""
PORTS = range(10_000, 32_768)
"""Of servers. Kernels give clients higher ones, so that no connection gets the port of a server that is down."""


def free_port() -> int:
    """Return a port nobody listens on; none is returned twice, and none in two processes of one run of the tests."""
    for port in _ports():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise AssertionError("all ports have been used")


@functools.cache
def _ports() -> Iterator[int]:
    """Return this process's share of the ports, in an order of its own."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = PORTS[number :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    return iter(random.SystemRandom().sample(share, len(share)))


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without any setting of convmem, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONVMEM_", "DEMO_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


class Server:
    """One server process, its children with it; `start` works again after it ended, with the same port and environment.

    Args:
        argv: The command; ``{port}`` in a part of it becomes the port.
        env: Added to this process's environment, from which all settings of convmem are taken out.
        port: Where it listens; None takes a free one.
        cwd: Where it runs.
        path: A GET that is answered, with whatever status, as soon as the server is ready.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        port: int | None = None,
        *,
        cwd: Path | None = None,
        path: str = "/",
    ) -> None:
        """Start nothing yet."""
        self.port = port or free_port()
        self.argv = [part.replace("{port}", str(self.port)) for part in argv]
        self.env = clean_environment(env)
        self.cwd = cwd
        self.path = path
        self._log = tempfile.NamedTemporaryFile(prefix="server-", suffix=".log")  # noqa: SIM115 - closed in close
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The process that was started; not a worker of it."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs, and before it was started."""
        return self._process.poll() if self._process else None

    @property
    def log(self) -> str:
        """All it ever wrote to standard output and standard error."""
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")

    def start(self, *, wait: float | None = PATIENCE) -> Self:
        """Start it, in a session of its own, and wait so many seconds until it answers; None does not wait.

        Raises:
            RuntimeError: It ended, or did not answer in time; the message holds its log.
        """
        assert self._process is None or self._process.poll() is not None, "it runs already"
        self._process = subprocess.Popen(
            self.argv, env=self.env, cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
        )
        if wait is not None:
            self.wait_until_it_answers(wait)
        return self

    def wait_until_it_answers(self, seconds: float = PATIENCE) -> None:
        """Wait until a GET on `path` gets any answer.

        Raises:
            RuntimeError: As `start`.
        """
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self.returncode is not None:
                msg = f"{self.argv} ended with {self.returncode} before it answered:\n{self.log}"
                raise RuntimeError(msg)
            if time.monotonic() > deadline:
                self.kill()
                msg = f"{self.argv} did not answer within {seconds} s:\n{self.log}"
                raise RuntimeError(msg)
            time.sleep(0.05)

    def wait_for_log(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until the log holds a text.

        Raises:
            RuntimeError: As `start`.
        """
        deadline = time.monotonic() + seconds
        while text not in self.log:
            if self.returncode is not None or time.monotonic() > deadline:
                msg = f"{self.argv} did not write {text!r}:\n{self.log}"
                raise RuntimeError(msg)
            time.sleep(0.05)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until the process has ended by itself; return how."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """End it, and all it started, with SIGKILL; return when it is gone."""
        self._signal_all(signal.SIGKILL)
        if self._process:
            self._process.wait(PATIENCE)

    def ask_to_end(self) -> None:
        """Send SIGTERM, as a deployment does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def terminate(self, seconds: float = PATIENCE) -> int:
        """Ask it to end, and return how it ended."""
        self.ask_to_end()
        return self.wait(seconds)

    def pause(self) -> None:
        """Stop it, and all it started, in the middle of whatever it does: a long pause of a host."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal_all(signal.SIGCONT)

    def close(self) -> None:
        """Kill what still runs and remove the log."""
        self.kill()
        self._log.close()

    def __enter__(self) -> Self:
        """Start it, unless it runs already."""
        try:
            return self if self._process and self.returncode is None else self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        """End it."""
        self.close()

    def _signal_all(self, number: signal.Signals) -> None:
        """Signal the process group, in which also children live on whose parent has died."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        connection = HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", self.path)
            connection.getresponse().read()
        except OSError:
            return False
        finally:
            connection.close()
        return True

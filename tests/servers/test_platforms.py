"""Several workers, in the ways people run them, some killed: whoever saw the last byte finds its answer, and nothing is there twice.

Each client repeats a turn under its Idempotency-Key until it has the answer; what all were told is judged by the history checker.
Each run draws another schedule of kills, and prints its seed: `--seed` repeats it.
"""

import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.checker import names
from tests.faults.workers import told
from tests.servers.commands import ROOT
from tests.servers.fleet import Caller, Visitor, judge
from tests.servers.processes import HOST, PATIENCE, PYTHON, Server
from tests.servers.schedule import Schedule, is_alive
from tests.wheels import valkey

APP = "tests.servers.fleet:app"
KEY = {"CONVMEM_SECRET_KEY": "a key of thirty-two bytes or more."}
UVICORN = [PYTHON, "-m", "uvicorn", APP, "--host", HOST, "--port", "{port}", "--log-level", "warning"]
GUNICORN = [PYTHON, "-m", "gunicorn", APP, "-b", f"{HOST}:{{port}}", "-k", "uvicorn_worker.UvicornWorker", "-w", "4"]
PLATFORMS = {
    "uvicorn-workers": ([[*UVICORN, "--workers", "4"]], KEY),
    "gunicorn": ([GUNICORN], KEY),
    "three-servers": ([UVICORN] * 3, KEY),
    "three-servers-without-a-key": ([UVICORN] * 3, {}),  # the key is kept in the store
}
STORES = ("sqlite", "redis", "postgresql")
QUICK = {
    ("uvicorn-workers", "sqlite"),
    ("three-servers-without-a-key", "sqlite"),
    ("gunicorn", "redis"),
    ("three-servers", "postgresql"),
}


@contextmanager
def a_store(name: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """Return the URL of an empty store of that kind, its server running."""
    if name == "sqlite":
        yield f"sqlite:///{folder}/convmem.db?busy_timeout=30s"
    elif name == "redis":
        with valkey.folder() as data, valkey.server(Path(data)) as server:
            yield server.url
    else:
        yield request.getfixturevalue("postgres_server").database() + "?unsafe=allow&timeout=30s"


@pytest.fixture(params=[pytest.param(name, marks=() if name == "sqlite" else pytest.mark.all_only) for name in STORES])
def url(request, tmp_path) -> Iterator[str]:
    """Return each kind of store in turn."""
    with a_store(request.param, request, tmp_path) as url:
        yield url


@pytest.fixture(
    params=[
        pytest.param((platform, store), marks=() if (platform, store) in QUICK else pytest.mark.all_only, id=f"{platform}-{store}")
        for platform in PLATFORMS
        for store in STORES
    ]
)
def servers(request, tmp_path) -> Iterator[list[Server]]:
    """Start one platform on one store."""
    platform, store = request.param
    commands, env = PLATFORMS[platform]
    with ExitStack() as stack:
        url = stack.enter_context(a_store(store, request, tmp_path))
        started = [Server(argv, environment(url, env), cwd=ROOT) for argv in commands]
        for server in started:
            stack.callback(server.close)
            server.start(wait=None)
        for server in started:
            server.wait_until_it_answers()
        yield started


def environment(url: str, env: dict[str, str]) -> dict[str, str]:
    """Return the settings; a key that is kept in a store on the network has to be asked for."""
    asked = {} if url.startswith("sqlite:") else {"CONVMEM_SECRET_KEY": "store"}
    return {"CONVMEM_STORE": url, "CONVMEM_LEASE": "1s", "CONVMEM_WINDOW_TURNS": "none", **asked, **env}


def test_workers_are_killed_and_stopped_at_random_and_every_turn_is_there_once(servers, seed, longer, tmp_path):
    """Two conversations, two clients each, in whose turns workers die with -9 and stand still past their lease.

    Whoever saw the last byte of an answer finds it in every later read, from whichever worker: by the client's own records, and by
    the checker's.
    """
    folder = tmp_path / "history"
    folder.mkdir()
    visitors = [Visitor(f"c{i}", [server.url for server in servers]) for i in range(2)]
    first = [Caller(folder, f"first-{visitor.name}", visitor) for visitor in visitors]
    for caller in first:
        caller.take()
    callers = [Caller(folder, f"p{i}", visitors[i % 2]) for i in range(4)]
    kills, stops = (9, 3) if longer else (3, 1)
    schedule = Schedule(
        seed,
        servers,
        lambda: {pid for caller in (*first, *callers) for pid in caller.pids[-1:]},
        seconds=1.2 * kills,
        kills=kills,
        stops=stops,
    )

    def run(caller: Caller) -> None:
        chance = random.Random(f"{seed} {caller.name}")
        while not befallen.done() or caller.turns < 4:
            caller.take()
            if chance.random() < 1 / 2:
                caller.read()
        caller.read()

    began = time.monotonic()
    with ThreadPoolExecutor(len(callers) + 1) as pool:
        befallen = pool.submit(schedule.run)
        for done in [befallen, *[pool.submit(run, caller) for caller in callers]]:
            done.result(timeout=2 * PATIENCE)
    took = time.monotonic() - began
    anomalies = judge(folder, visitors)
    workers = {pid for caller in (*first, *callers) for pid in caller.pids}
    killed = workers.intersection(schedule.struck[signal.SIGKILL])
    turns, tries = sum(caller.turns for caller in callers), sum(caller.tries for caller in callers)
    print(f"{turns} turns in {tries} tries from {len(workers)} workers, of which {len(killed)} were killed, in {took:.1f} s")
    assert not anomalies, told(anomalies)
    assert {caller.name: caller.unfound for caller in callers if caller.unfound} == {}
    assert [len(struck) for struck in schedule.struck.values()] == [kills, stops]
    assert killed, "nobody was killed who had answered"


def test_twin_a_server_that_answers_before_it_stores_is_found_by_the_client_that_saw_the_last_byte(tmp_path):
    """The same client, whose worker is killed as soon as it has answered: its own records say what is gone, and so does the checker."""
    folder = tmp_path / "history"
    folder.mkdir()
    argv = [part if part != APP else f"{APP}_that_answers_first" for part in [*UVICORN, "--factory"]]
    with Server(argv, environment(f"sqlite:///{tmp_path}/convmem.db", KEY), cwd=ROOT) as server:
        visitor = Visitor("c0", [server.url])
        caller = Caller(folder, "p0", visitor)
        caller.take()
        server.kill()
        server.start()
        caller.read()
        anomalies = judge(folder, [visitor])
    assert caller.unfound == set(caller.answers)
    assert names(anomalies) & {"lost-turn", "lost-part-of-turn"}, told(anomalies)


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


def test_a_fresh_process_for_every_request_is_the_same_memory(url, tmp_path):
    """As on a platform that starts one for each: nothing a process remembers is needed."""
    folder = tmp_path / "history"
    folder.mkdir()
    with Server(UVICORN, environment(url, {}), cwd=ROOT) as server:
        visitor = Visitor("c0", [server.url])
        caller = Caller(folder, "p0", visitor)
        for _ in range(3):
            caller.take()
            server.kill()
            server.start()
        assert len(set(caller.pids)) == 3
        anomalies = judge(folder, [visitor])
    assert not anomalies, told(anomalies)


def test_a_development_server_that_reloads_between_turns_forgets_nothing(url, tmp_path):
    """`--reload`: each edit of the code is a new process."""
    folder, watched = tmp_path / "history", tmp_path / "watched"
    folder.mkdir()
    watched.mkdir()
    (watched / "app.py").touch()
    argv = [*UVICORN, "--reload", "--reload-dir", str(watched)]
    with Server(argv, environment(url, {}), cwd=ROOT) as server:
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


def wait_for_another_worker(server: Server, pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while is_alive(pid):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.05)
    server.wait_until_it_answers()

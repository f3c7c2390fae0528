"""MemoryStore: what only it does. The contract is in ``test_contract.py``."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from convmem.stores.memory import MemoryStore

USE = """
import asyncio, warnings
from convmem.keys import SessionKey
from convmem.stores.memory import MemoryStore, ProcessLocalMemoryWarning

def use():
    async def twice():
        store = MemoryStore()
        for _ in range(2):
            await store.load(SessionKey.for_user("42"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(twice())
    print(*[f"{w.category.__name__}: {w.message} ({w.filename})" for w in caught], sep="\\n")
"""
ALONE = f"{USE}\nuse()\n"
CHILD = f"""{USE}
import multiprocessing
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=use)
    child.start()
    child.join()
"""


def run(script: str, tmp_path, **environment: str) -> str:
    """Run a script in a process of its own and return what it printed."""
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script))
    inherited = {name: value for name, value in os.environ.items() if name not in {"WEB_CONCURRENCY", "SERVER_SOFTWARE"}}
    done = subprocess.run(
        [sys.executable, str(file)],
        env={**inherited, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_process_is_not_warned(tmp_path) -> None:
    """A notebook or a test has one memory, and nothing to be told."""
    assert run(ALONE, tmp_path) == ""
    assert run(ALONE, tmp_path, WEB_CONCURRENCY="1") == ""
    assert run(ALONE, tmp_path, SERVER_SOFTWARE="uvicorn") == ""


@pytest.mark.parametrize(
    ("environment", "sign"),
    [({"WEB_CONCURRENCY": "4"}, "WEB_CONCURRENCY is 4"), ({"SERVER_SOFTWARE": "gunicorn/23.0.0"}, "gunicorn worker")],
)
def test_one_of_several_workers_is_warned_once(tmp_path, environment: dict[str, str], sign: str) -> None:
    """Each worker would have a memory of its own: the chat forgets at every other request. It says why, and what to set."""
    (line,) = run(ALONE, tmp_path, **environment).splitlines()
    assert line.startswith("ProcessLocalMemoryWarning: ")
    assert sign in line
    assert "CONVMEM_STORE=sqlite:///convmem.db" in line


def test_a_worker_started_by_a_server_is_warned(tmp_path) -> None:
    """`uvicorn --workers 4` starts its workers by multiprocessing and leaves no other sign."""
    (line,) = run(CHILD, tmp_path).splitlines()
    assert line.startswith("ProcessLocalMemoryWarning: ")
    assert "multiprocessing" in line


@pytest.mark.asyncio
async def test_a_new_object_is_a_new_memory() -> None:
    """What one object holds goes with it; nothing is global."""
    from convmem.testing import Writer

    writer = Writer(MemoryStore())
    await writer.append()
    assert await Writer(MemoryStore(), writer.key).visible() == ()

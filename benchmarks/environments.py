"""The environments the systems run in: peers pin versions that clash, with each other and with what convmem is tested with."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sysconfig
from typing import TYPE_CHECKING, Any

from convmem import bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HOME = bootstrap.CHECKOUT / ".venv-bench"
REQUIREMENTS = {
    "own": (
        *(("-c", str(bootstrap.CONSTRAINTS)) if bootstrap.CONSTRAINTS.exists() else ()),
        "-e",
        f"{bootstrap.CHECKOUT}[all]",
        "aiosqlite",
        "httptools",
        "uvloop",
    ),
    "langchain": (
        "langchain-community",
        "langchain-postgres",
        "langgraph",
        "langgraph-checkpoint-postgres",
        "langgraph-checkpoint-sqlite",
        "psycopg[binary]",
        "redis[hiredis]",
        "uvloop",
    ),
    "llamaindex": (
        "llama-index-core",
        "llama-index-storage-chat-store-postgres",
        "llama-index-storage-chat-store-redis",
        "psycopg[binary]",
        "redis[hiredis]",
        "uvloop",
    ),
    "agents": (
        "openai-agents[redis,sqlalchemy]",
        "aiosqlite",
        "asyncpg",
        "redis[hiredis]",
        "starsessions",
        "starlette",
        "litestar",
        "httptools",
        "uvicorn",
        "uvloop",
    ),
    "adk": ("google-adk[db]", "asyncpg", "aiosqlite", "uvloop"),
}
_SHOWN = (
    "convmem", "redis", "hiredis", "asyncpg", "psycopg", "aiosqlite", "sqlalchemy", "uvloop", "langchain-core", "langchain-community",
    "langchain-postgres", "langgraph", "langgraph-checkpoint-postgres", "langgraph-checkpoint-sqlite", "llama-index-core",
    "llama-index-storage-chat-store-postgres", "llama-index-storage-chat-store-redis", "openai-agents",
    "starsessions", "litestar", "google-adk",
)  # fmt: skip


def make(name: str, requirements: Sequence[str] | None = None) -> Path:
    """Return the Python of an environment, made now if it is missing or other things are asked for.

    Args:
        name: Of the environment.
        requirements: What is to be in it; None: as `REQUIREMENTS` says.

    Raises:
        BootstrapError: It cannot be made.
    """
    home = HOME / name
    requirements = REQUIREMENTS[name] if requirements is None else tuple(requirements)
    stamp = hashlib.sha256(json.dumps([requirements, "compiled"]).encode()).hexdigest()
    python, mark = bootstrap.python_of(home), home / "stamp"
    if not (python.exists() and mark.exists() and mark.read_text() == stamp):
        HOME.mkdir(exist_ok=True)
        tools = bootstrap.Tools()
        tools.make_venv(home)
        tools.install(home, *requirements)
        _compile(python, sysconfig.get_path("purelib", vars={"base": str(home)}))
        mark.write_text(stamp)
    _compile(python, *(str(bootstrap.CHECKOUT / package) for package in ("convmem", "benchmarks")))
    return python


def _compile(python: Path, *folders: str) -> None:
    """Compile what is imported, as pip does when it installs a wheel: else what an import takes depends on who imported it before."""
    command = [str(python), "-m", "compileall", "-q", "-j", "0", *folders]
    subprocess.run(command, capture_output=True, check=False)  # some files are for other Pythons


def versions(python: Path) -> dict[str, str]:
    """Return what is installed there, of what decides the figures."""
    code = (
        "import importlib.metadata as m, json, sqlite3, sys\n"
        "found = {'python': sys.version.split()[0], 'sqlite': sqlite3.sqlite_version}\n"
        f"for name in {_SHOWN!r}:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    found: dict[str, Any] = json.loads(subprocess.run([str(python), "-c", code], capture_output=True, check=True).stdout)
    return found

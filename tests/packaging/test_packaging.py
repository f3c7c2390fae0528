"""What is shipped, what importing it loads, and what a checkout can do before anything is installed."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from itertools import chain
from pathlib import Path

import pytest

import convmem
from tests.wheels import valkey

INFO = f"convmem-{convmem.__version__}.dist-info"
ROOT = Path(__file__).resolve().parents[2]
DRIVERS = {"aiosqlite", "asyncpg", "psycopg", "redis", "sqlite3", "sqlalchemy", "valkey"}
WEB = {"django", "fastapi", "litestar", "quart", "starlette", "uvicorn"}
FRAMEWORKS = WEB | {"langchain_core", "llama_index", "openai", "pydantic", "rich", "typer"}
UNSHIPPED = {".db", ".db-shm", ".db-wal", ".pyc"}


def run(*arguments, **options):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, as a release would build it."""
    directory = tmp_path_factory.mktemp("dist")
    built = run("-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (path,) = directory.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_package_and_nothing_of_the_checkout(wheel):
    """The editable install puts the whole checkout on the path; only the wheel shows what a user gets."""
    names = set(wheel.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"convmem", "convmem_langchain", "convmem_llamaindex", "convmem_openai_agents", "convmem_pydantic_ai", INFO}
    packages = ("convmem_langchain", "convmem_llamaindex", "convmem_openai_agents", "convmem_pydantic_ai")
    assert {f"{package}/{file}" for package in packages for file in ("__init__.py", "py.typed")} <= names
    assert {"convmem/__init__.py", "convmem/py.typed", "convmem/cli/__init__.py"} <= names
    assert f"{INFO}/licenses/LICENSE" in names
    assert "convmem/bootstrap.py" not in names


def test_the_wheel_holds_every_file_of_the_package(wheel):
    """SQL and pages are files too; a wheel without them fails only where it is installed."""
    files = [path for path in (ROOT / "convmem").rglob("*") if path.is_file() and path.suffix not in UNSHIPPED]
    there = {path.relative_to(ROOT).as_posix() for path in files} - {"convmem/bootstrap.py"}
    adapters = ROOT / "adapters"
    there |= {path.relative_to(adapters).as_posix() for path in adapters.glob("*/*") if path.is_file() and path.suffix not in UNSHIPPED}
    assert there <= set(wheel.namelist())


def test_every_extra_can_be_installed_by_its_name(wheel):
    """The install lines in the errors and in the docs name these."""
    metadata = wheel.read(f"{INFO}/METADATA").decode()
    extras = {line.removeprefix("Provides-Extra: ") for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}
    assert extras == {
        "all",
        "cli",
        "demo",
        "docs",
        "langchain",
        "langgraph",
        "llamaindex",
        "openai-agents",
        "otel",
        "postgres",
        "pydantic-ai",
        "redis",
        "test",
        "tokens",
    }
    assert "License-Expression: MIT" in metadata


def test_importing_convmem_loads_no_driver_and_no_framework():
    """A store that is not used costs nothing, and its driver need not be installed."""
    found = run("-c", "import convmem, json, sys; print(json.dumps(sorted(sys.modules)))", cwd=ROOT)
    assert found.returncode == 0, found.stderr
    loaded = {name.partition(".")[0] for name in json.loads(found.stdout)}
    assert not loaded & (DRIVERS | FRAMEWORKS)


def test_wrapping_an_app_loads_no_driver_and_little_besides():
    """Every worker would pay for it, at its start and in memory; serverless ones with each cold start."""
    code = (
        "import sys, asyncio, pydantic.main, starlette.requests, starlette.authentication; before = set(sys.modules); "
        "from convmem import Conversation, ConversationMiddleware, Message, get_conversation; print(*(set(sys.modules) - before))"
    )
    found = run("-c", code, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    loaded = found.stdout.split()
    assert "convmem.middleware" in loaded
    assert not {name.partition(".")[0] for name in loaded} & (DRIVERS | FRAMEWORKS - {"pydantic", "starlette"})
    assert len(loaded) <= 150


def test_a_worker_whose_url_names_redis_servers_goes_without_redis_py(tmp_path):
    """What is not imported takes neither 6 MB of each worker nor time at its start."""
    code = (
        "import asyncio, sys; from convmem import ConversationMiddleware, Message, SessionKey, open_conversation, open_store\n"
        "async def turn(url):\n"
        "    async with open_store(url) as store:\n"
        "        async with open_conversation(SessionKey.for_user('1', 's'), store=store) as conversation:\n"
        "            conversation.append(Message.user('one'), Message.assistant('two'))\n"
        "        print(len((await store.load(SessionKey.for_user('1', 's'))).entries), 'redis' in sys.modules)\n"
        "asyncio.run(turn(sys.argv[1]))"
    )
    with valkey.folder() as folder, valkey.server(tmp_path, "--unixsocket", f"{folder}/r.sock") as server:
        for number, url in enumerate((server.url, f"unix://{folder}/r.sock"), 1):
            found = run("-c", code, url, cwd=ROOT)
            assert (found.returncode, found.stdout) == (0, f"{number} False\n"), found.stderr


def test_importing_convmem_works_before_anything_is_installed():
    """`python3 -m convmem demo` in a fresh clone starts here."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import convmem; print(convmem.__version__)"
    found = run("-I", "-S", "-c", code)
    assert found.stdout == f"{convmem.__version__}\n", found.stderr


def test_a_command_without_its_packages_says_what_to_install():
    """The command exists with every install, so it must not answer with a traceback."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = ['demo']; from convmem.cli import main; main()"
    found = run("-I", "-S", "-c", code)
    assert found.returncode == 2
    assert found.stderr == 'convmem\'s commands need: pip install "convmem[demo]"\n'


@pytest.mark.parametrize(
    "name", ["convmem/__init__.py", "convmem/__main__.py", "convmem/bootstrap.py", "tests/__init__.py", "tests/__main__.py"]
)
def test_an_old_python_can_read_what_tells_it_that_it_is_too_old(name):
    """A syntax error is no answer to somebody whose `python3` is 3.8."""
    ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_constraints_name_no_registry():
    """They are used with whatever index the reader has; an address in them would override that or break."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert lines
    assert not [line for line in lines if "//" in line or "@" in line or line.startswith("-")]


def test_the_constraints_cover_what_pyproject_asks_for():
    """A dependency that is not in constraints.txt would be installed in another version every month."""
    metadata = run("-m", "hatchling", "metadata", "dependencies", cwd=ROOT)
    assert metadata.returncode == 0, metadata.stderr
    extras = run("-m", "hatchling", "metadata", "optional-dependencies", cwd=ROOT)
    asked = [*json.loads(metadata.stdout), *chain.from_iterable(json.loads(extras.stdout).values())]
    names = {line.partition("=")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")}
    wanted = {re.split(r"[<>=\[]", line)[0] for line in asked} - {"convmem"}
    assert wanted <= names


@pytest.fixture
def clone(tmp_path):
    """A copy of the checkout without its environment, and a function that runs the base interpreter in it."""
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("convmem", "adapters"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run_base(*arguments, **options):
        command = [sys._base_executable, *arguments]  # type: ignore[attr-defined]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False, **options)

    return tmp_path, run_base


def test_an_environment_that_somebody_else_made_is_never_deleted(clone):
    """A `.venv` may hold days of somebody's work; one that does not start is named, not replaced."""
    directory, run_base = clone
    (directory / ".venv").mkdir()
    (directory / ".venv" / "notes.txt").write_text("mine")
    found = run_base("-m", "convmem", "version")
    assert found.returncode == 2
    assert "was not made by convmem" in found.stderr
    assert (directory / ".venv" / "notes.txt").read_text() == "mine"


@pytest.mark.all_only
def test_a_clone_makes_its_environment_once_and_finishes_what_a_killed_run_left(clone):
    """The first command of a newcomer is `python3 -m convmem demo`; it may be interrupted anywhere."""
    directory, run_base = clone
    for seconds in (0.5, 1.5, 2.5):
        try:
            run_base("-m", "convmem", "version", timeout=seconds)  # killed when the time is over
        except subprocess.TimeoutExpired:
            continue
    first = run_base("-m", "convmem", "version")
    assert first.returncode == 0, first.stderr
    second = run_base("-m", "convmem", "version")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == first.stdout
    assert json.loads((directory / ".venv" / "convmem.json").read_text())["made"]

"""Make the checkout's own environment on first use, then run in it.

For ``python3 -m convmem`` and ``python3 -m tests`` in a checkout; not part of the wheel. Standard library only, and readable by
Python 3.8, so that an old interpreter is answered with a sentence and not with a syntax error.

What is on disk, all of it ignored by git and safe to delete:

- ``.venv``: the environment. ``.venv/convmem.json`` says which Python made it and which extras it holds, each with the stamp of the
  files that decided what was installed. A ``.venv`` without that file was made by somebody else: it is used, and never deleted.
- ``.venv-boot``: the lock, a private copy of uv when none is installed, and two marks that show what a killed run left half done.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, NoReturn

try:
    import fcntl
except ImportError:  # Windows: two first runs at once are not kept apart
    fcntl = None  # type: ignore[assignment]

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
BOOT = CHECKOUT / ".venv-boot"
CONSTRAINTS = CHECKOUT / "constraints.txt"
OLDEST = (3, 11)

COVERS = {"demo": ("demo",), "test": ("test", "demo")}  # an extra holds what these extras hold
PROBES = {
    "demo": ("pydantic_settings", "starlette", "typer", "rich", "uvicorn"),
    "test": ("pydantic_settings", "starlette", "typer", "rich", "uvicorn", "pytest", "pytest_asyncio", "hypothesis", "httpx2", "hypercorn"),
}


class BootstrapError(Exception):
    """The environment cannot be made; the message says what to type."""


def enter(extra: str, arguments: Sequence[str]) -> None:
    """Return when the running interpreter holds `extra`; else run ``python *arguments`` in ``.venv`` and never return.

    Exits with 2, after one line on standard error, when Python is too old or the environment cannot be made.
    """
    try:
        if sys.version_info < OLDEST:
            wanted, found = ".".join(map(str, OLDEST)), platform.python_version()
            _stop(f"convmem needs Python {wanted} or newer; this is Python {found} ({sys.executable}).")
        if not _is_checkout() or _is_running_with(extra):
            return
        python = ensure(extra)
    except BootstrapError as error:
        _stop(str(error))
    except OSError as error:
        _stop(f"No environment could be made in {VENV}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    _replace_process([str(python), *arguments])


def ensure(extra: str) -> Path:
    """Return the Python of ``.venv``, made or updated so that it holds `extra` as pyproject.toml and constraints.txt say now.

    Two processes at once: the second waits for the first. A run that was killed is finished by the next.

    Raises:
        BootstrapError: Neither uv nor pip nor venv is to be had, or the installation failed.
    """
    if _is_fresh(extra):
        return python_of(VENV)
    with _lock() as lock:
        if _is_fresh(extra):
            return python_of(VENV)
        tools = Tools(lock)
        if _must_be_made():
            once = f"anew, for Python {platform.python_version()}" if _state() else "(first run only)"
            _say(f"Making an environment in .venv {once} …")
            _make(tools)
        else:
            _say("Updating the environment in .venv …")
        _install(tools, extra)
    return python_of(VENV)


def python_of(venv: Path) -> Path:
    """Return where an environment keeps its interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class Tools:
    """What makes environments and installs into them: uv where it is to be had, else venv and pip."""

    def __init__(self, lock: int | None = None) -> None:
        """Keep `lock` open in the processes started, so that it outlives this process when only this one is killed."""
        self._keep = () if lock is None or os.name == "nt" else (lock,)
        self._log: list[str] = []
        self._uv = self._find_uv() or self._fetch_uv()

    def make_venv(self, directory: Path) -> None:
        """Make an environment in `directory`, which is emptied before.

        Raises:
            BootstrapError: Nothing that makes one is there, or all of it failed.
        """
        self._log.clear()
        ways = [
            [sys.executable, "-m", "venv", str(directory)] if _has("ensurepip") else [],
            [sys.executable, "-m", "venv", "--without-pip", str(directory)] if _has("pip") else [],
        ]
        if self._uv:
            ways.insert(0, [self._uv, "venv", "--quiet", "--python", sys.executable, str(directory)])
        if not any(ways):
            raise BootstrapError(_how_to_get_pip())
        for way in filter(None, ways):
            _empty(directory)
            if self._run(way) and python_of(directory).exists():
                if not self._uv and _has_pip(python_of(directory)):
                    self._uv = self._fetch_uv(python_of(directory))
                return
        raise BootstrapError(self._failure("Making the environment failed"))

    def install(self, directory: Path, *requirements: str, again: bool = False) -> None:
        """Install what pip's arguments say into the environment; `again` also replaces what seems to be there.

        Raises:
            BootstrapError: Nothing that installs is there, or all of it failed.
        """
        self._log.clear()
        python = str(python_of(directory))
        quiet = ["--quiet", "--no-input", *(["--ignore-installed"] if again else [])]
        ways = []
        if self._uv:
            ways.append([self._uv, "pip", "install", "--quiet", *(["--reinstall"] if again else []), "--python", python, *requirements])
        if _has("pip"):
            ways.append([sys.executable, "-m", "pip", "--python", python, "install", *quiet, *requirements])
        if _has_pip(Path(python)):
            ways.append([python, "-m", "pip", "install", *quiet, *requirements])
        if not ways:
            raise BootstrapError(_how_to_get_pip())
        if not any(self._run(way) for way in ways):
            raise BootstrapError(self._failure("Installing into the environment failed"))

    def _find_uv(self) -> str | None:
        """Return a uv that starts: version managers leave commands on the path that only print an error."""
        own = [str(path) for path in BOOT.glob("uv/*/*") if path.name in ("uv", "uv.exe")]
        for candidate in [shutil.which("uv"), *own]:
            if candidate and self._run([candidate, "--version"]):
                return candidate
        return None

    def _fetch_uv(self, python: Path | None = None) -> str | None:
        """Install uv beside ``.venv``, never into the interpreter: ``--target`` is allowed where PEP 668 forbids the rest."""
        if python is None and not _has("pip"):
            return None
        unfinished = BOOT / f"uv-{os.getpid()}"
        pip = [str(python or sys.executable), "-m", "pip", "install", "--quiet", "--no-input", "--no-warn-script-location"]
        BOOT.mkdir(exist_ok=True)
        if self._run([*pip, "--only-binary", ":all:", "--target", str(unfinished), "uv"]):
            _remove(BOOT / "uv")
            unfinished.rename(BOOT / "uv")
            return self._find_uv()
        _remove(unfinished)
        return None

    def _run(self, command: list[str]) -> bool:
        """Run quietly and tell whether it worked; what it said is kept for the error message."""
        environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}
        environment["PIP_REQUIRE_VIRTUALENV"] = "0"  # nothing here installs into the interpreter that runs this
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=environment,
                pass_fds=self._keep,
                cwd=CHECKOUT,
                check=False,
            )
        except OSError as error:
            self._log.append(f"$ {' '.join(command)}\n{error}")
            return False
        if done.returncode != 0:
            self._log.append(f"$ {' '.join(command)}\n{done.stdout.strip()}")
        return done.returncode == 0

    def _failure(self, what: str) -> str:
        return "\n".join(
            [*self._log, f"{what}, see above. Without network? Try again; if it fails again, delete {VENV.name} and {BOOT.name}."]
        )


def _is_checkout() -> bool:
    pyproject = CHECKOUT / "pyproject.toml"
    return pyproject.is_file() and 'name = "convmem"' in pyproject.read_text(encoding="utf-8")


def _is_running_with(extra: str) -> bool:
    """Tell whether the running interpreter is to be used as it is: our fresh ``.venv``, or one where somebody installed convmem."""
    if Path(sys.prefix).resolve() == VENV.resolve() and _state():
        return _is_fresh(extra)
    try:
        importlib.metadata.distribution("convmem")
    except importlib.metadata.PackageNotFoundError:
        return False
    return all(map(_has, PROBES[extra]))


def _is_fresh(extra: str) -> bool:
    state = _state()
    return (
        bool(state)
        and state["extras"].get(extra) == _stamp()
        and (state["python"] == _python() or not state["made"])
        and python_of(VENV).exists()
        and not _mark("making").exists()
    )


def _must_be_made() -> bool:
    """Tell whether ``.venv`` is missing, half made, broken, or of another Python than the one that runs this."""
    if _mark("making").exists() or not VENV.exists() or not any(VENV.iterdir()):
        return True
    state = _state()
    usable = _starts(python_of(VENV))
    if state and state["made"]:
        return not usable or state["python"] != _python()
    if not usable:
        msg = f"{VENV} was not made by convmem, and its Python is missing or older than 3.11: delete it, then run this again."
        raise BootstrapError(msg)
    return False


def _make(tools: Tools) -> None:
    mark = _mark("making")
    mark.touch()
    tools.make_venv(VENV)
    _write_state({"python": _python(), "made": True, "extras": {}})
    mark.unlink()


def _install(tools: Tools, extra: str) -> None:
    mark = _mark("installing")
    again = mark.exists()
    mark.touch()
    stamp = _stamp()
    constraints = ["-c", str(CONSTRAINTS)] if CONSTRAINTS.exists() else []
    tools.install(VENV, *constraints, "-e", f"{CHECKOUT}[{extra}]", again=again)
    state = _state() or {"python": _python(), "made": False, "extras": {}}
    state["extras"].update(dict.fromkeys(COVERS[extra], stamp))
    _write_state(state)
    mark.unlink()


def _state() -> dict[str, Any]:
    """Return what ``.venv`` says about itself; empty when it says nothing readable."""
    try:
        state = json.loads((VENV / "convmem.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and {"python", "made", "extras"} <= state.keys() else {}


def _write_state(state: dict[str, Any]) -> None:
    unfinished = VENV / f"convmem.json.{os.getpid()}"
    unfinished.write_text(json.dumps(state, indent=1), encoding="utf-8")
    unfinished.replace(VENV / "convmem.json")


def _stamp() -> str:
    """Return the hash of what decides the installation; the settings of linters and tests in pyproject.toml do not."""
    import tomllib  # not in Python 3.8, which reads this file

    pyproject = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    deciding = [pyproject["build-system"], pyproject["project"], pyproject["tool"]["hatch"]]
    constraints = CONSTRAINTS.read_text(encoding="utf-8") if CONSTRAINTS.exists() else ""
    return hashlib.sha256(json.dumps([deciding, constraints], sort_keys=True).encode()).hexdigest()


def _python() -> str:
    return f"{platform.python_implementation()} {platform.python_version()} {sys.platform} {platform.machine()}"


def _mark(name: str) -> Path:
    return BOOT / name


@contextlib.contextmanager
def _lock() -> Iterator[int]:
    BOOT.mkdir(exist_ok=True)
    with (BOOT / "lock").open("w", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say("Waiting for another process that is making .venv …")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _has(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a leftover folder without code has no origin


def _has_pip(python: Path) -> bool:
    return _answers([str(python), "-m", "pip", "--version"])


def _starts(python: Path) -> bool:
    return _answers([str(python), "-c", f"import sys; sys.exit(sys.version_info < {OLDEST!r})"])


def _answers(command: list[str]) -> bool:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _empty(directory: Path) -> None:
    """Empty a directory without removing it: it may be where a container mounts a volume."""
    for path in directory.iterdir() if directory.is_dir() else ():
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def _how_to_get_pip() -> str:
    if Path("/etc/debian_version").exists():
        return "This Python has neither pip nor venv. Install them, then run this again:  apt install python3-venv python3-pip"
    return (
        f"Python has neither pip nor venv ({sys.executable}). Install pip or uv for it, then run this again:  {sys.executable} -m ensurepip"
    )


def _replace_process(command: list[str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":  # there, exec returns to the shell before the new process has ended
        sys.exit(subprocess.run(command, check=False).returncode)
    os.execv(command[0], command)


def _say(line: str) -> None:
    """Print to standard error, also where it cannot encode the line."""
    encoding = sys.stderr.encoding or "ascii"
    print(line.encode(encoding, "replace").decode(encoding), file=sys.stderr, flush=True)


def _stop(line: str) -> NoReturn:
    _say(line)
    sys.exit(2)

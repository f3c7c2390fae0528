"""How each server is started on an app of `tests.servers.apps`, with one worker."""

import sys
from pathlib import Path

from tests.servers.processes import HOST, PYTHON, Server

ROOT = Path(__file__).parents[2]
SERVERS = {
    "uvicorn": ["uvicorn", "{app}", "--host", HOST, "--port", "{port}", "{factory}"],
    "hypercorn": ["hypercorn", "{app}", "--bind", HOST + ":{port}"],
    "granian": ["granian", "--interface", "asgi", "--host", HOST, "--port", "{port}", "{factory}", "{app}"],
    "daphne": ["daphne", "-b", HOST, "-p", "{port}", "{app}"],
}
WAIT_FOR_CLIENTS = {"hypercorn"} if sys.version_info >= (3, 12) else set()
"""What ends when its clients have hung up, however long that takes: hypercorn 0.18, since ``asyncio.Server.wait_closed`` waits for them."""
VARIANTS = {"uvicorn-httptools": ("uvicorn", ["--http", "httptools"]), "uvicorn-h11": ("uvicorn", ["--http", "h11"])}


def server(name: str, app: str, env: dict[str, str], *options: str, factory: bool = False) -> Server:
    """Return a server on an app, not started yet; without a module in front it is one of `tests.servers.apps`."""
    name, variant = VARIANTS.get(name, (name, []))
    target = (app if ":" in app else f"tests.servers.apps:{app}") + ("()" if factory and name == "hypercorn" else "")
    filled = [part.replace("{app}", target) for part in SERVERS[name]]
    argv = ["--factory" if part == "{factory}" else part for part in filled if factory or part != "{factory}"]
    return Server([PYTHON, "-m", *argv, *variant, *options], env, cwd=ROOT)

"""The demo as its users start it, and a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers.processes import PATIENCE, PYTHON, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

CONVMEM = [PYTHON, "-c", "from convmem.cli import main; main()"]  # what the installed command runs
CHECKOUT = Path(__file__).resolve().parents[2]
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def demo_server(folder: Path, *arguments: str, **environment: str) -> Server:
    """Return the demo, not started yet, with its store in `folder`."""
    argv = [*CONVMEM, "demo", "--no-browser", "--port", "{port}", *arguments]
    return Server(argv, {"DEMO_WORD_DELAY": "0", "PYTHONPATH": str(CHECKOUT), **environment}, cwd=folder, path="/health")


def find_browser() -> str | None:
    """Return a browser that speaks Chromium's protocol; None when none is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start demos; they end with the test."""
    servers: list[Server] = []

    def start_one(*arguments: str, **environment: str) -> Server:
        servers.append(demo_server(tmp_path, *arguments, **environment))
        return servers[-1].start()

    yield start_one
    for server in servers:
        server.kill()
        print(server.log)  # shown with a test that failed
        server.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser without a window. Not longer than a module: playwright's loop keeps others from running in this thread."""
    found = find_browser()
    if found is None:
        pytest.skip("declared: no chromium installed (apt install chromium)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=BROWSER_ARGUMENTS)
        yield opened
        opened.close()

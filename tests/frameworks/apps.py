"""The app of a framework's page, on a real server, with a model that does as it is told."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.docs.pages import DOCS, blocks_of
from tests.frameworks.catalogue import Framework
from tests.servers.commands import SERVERS, VARIANTS
from tests.servers.processes import PYTHON, Server, clean_environment

MODEL = '''
import asyncio
import time
from pathlib import Path


def is_to_think():
    """Say that it thinks; return whether it is to, for it has not been told to go on."""
    Path("thinks").touch()
    return not Path("goes-on").exists()


async def think():
    while is_to_think():
        await asyncio.sleep(0.01)


def say(messages):
    """Say what was said, as the page's model does; or do as the last message says."""
    said = [message.text for message in messages if message.role == "user"]
    if said[-1] == "fail":
        raise RuntimeError("the model is down")
    return "You said: " + ", ".join(said)


def answer_now(messages):
    while messages[-1].text == "slowly" and is_to_think():
        time.sleep(0.01)
    return say(messages)


async def answer(messages):
    if messages[-1].text == "slowly":
        await think()
    return say(messages)


async def stream(messages):
    for number, word in enumerate(say(messages).split()):
        if number == 1 and messages[-1].text == "slowly":
            await think()
        if number == 1 and messages[-1].text == "break off":
            raise RuntimeError("the model broke off")
        yield f"{word} "
'''

OPTIONS = {**VARIANTS, "uvicorn": VARIANTS["uvicorn-httptools"]}


def write(framework: Framework, directory: Path) -> None:
    """Write the files of a page as its reader would, but for the model."""
    for block in blocks_of(DOCS / "how-to" / "frameworks" / f"{framework.name}.md"):
        if block.title and block.language == "python":
            (directory / block.title).write_text(block.code, encoding="utf-8")
    (directory / "model.py").write_text(MODEL, encoding="utf-8")


def serve(framework: Framework, name: str, directory: Path, env: Mapping[str, str]) -> Server:
    """Return a server on the app of the page, written and prepared, not started yet."""
    write(framework, directory)
    env = {**env, "DJANGO_SETTINGS_MODULE": "settings", "PYTHONDONTWRITEBYTECODE": "1"}
    for arguments in framework.prepare:
        subprocess.run([PYTHON, *arguments], cwd=directory, env=clean_environment(env), check=True, capture_output=True)
    command, options = OPTIONS.get(name, (name, []))
    argv = [part.replace("{app}", framework.target) for part in SERVERS[command] if part != "{factory}"]
    return Server([PYTHON, "-m", *argv, *options], env, cwd=directory)

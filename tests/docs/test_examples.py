"""Every code block in the README and the docs is run, and every link leads somewhere.

The conventions, by the language of a block; each page has a directory of its own, and its blocks share one namespace:

- ``python``: executed; one that awaits at its top is a notebook's cell. With a title it is also a file of that name, there from the
  beginning, to be imported and served.
- ``diff``: with a title. What it results in is written to the file, and executed like ``python``; what it starts from must compile.
- ``console``: each line that begins with ``$`` is run in bash; the lines below are what it writes to standard output, ``...``
  standing for anything. See `terminal`.
- ``json``: parsed. With the title ``answer.json`` it is the problem document that the variable ``answer`` holds when the block is reached,
  ``...`` in a text standing for anything.
- ``js``: with a title; the file is written, and a test runs it in a browser (`test_origins`, `test_stop_button`).
- ``text``: a picture or a log, nothing to run.

A page whose blocks name ``REDIS_URL`` finds the address of a server there.

Pages in `ELSEWHERE` are run by `test_elsewhere`, in environments of their own.

A block below ``<!-- not run: reason -->`` is left alone, and has to be listed here. Warnings are errors everywhere.
"""

import ast
import asyncio
import inspect
import json
import os
import re
import shutil
import sys
import types

import pytest

from .pages import ELSEWHERE, ROOT, anchors_of, blocks_of, links_of, name_of, pages
from .terminal import Terminal

NOT_RUN = {
    "docs/how-to/several-workers.md": ["a part of a deployment"],
    "README.md": ["installs packages", "each makes an environment on first use, and the second runs this very test"],
    "docs/tutorial.md": ["installs packages"],
    "docs/how-to/run-the-tests.md": ["they run all tests, and these are among them", "installs packages"],
}
PLATFORMS = ("AWS_LAMBDA_FUNCTION_NAME", "DYNO", "KUBERNETES_SERVICE_HOST", "K_SERVICE", "VERCEL")
AMBIENT = ("CONVMEM_", "DATABASE_URL", "REDIS_URL", "WEB_CONCURRENCY", *PLATFORMS)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty working directory, the environment of somebody who has set nothing, and no module of another page."""
    for name in list(os.environ):
        if name.startswith(AMBIENT):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before, environment = set(sys.modules), dict(os.environ)
    yield tmp_path
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def servers(request, monkeypatch):
    """Set the variable a page names for the address of a server, to a real one; each page finds it empty."""

    def start(page):
        if any(re.search(r"\bREDIS_URL\b", block.code) for block in blocks_of(page)):
            server = request.getfixturevalue("valkey_server")
            server.ask("FLUSHALL")
            monkeypatch.setenv("REDIS_URL", server.url)
        if any(re.search(r"\bDATABASE_URL\b", block.code) for block in blocks_of(page)):
            monkeypatch.setenv("DATABASE_URL", request.getfixturevalue("postgres_server").database())

    return start


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=name_of(page)) for page in pages() if blocks_of(page) and name_of(page) not in ELSEWHERE]
)
def test_every_code_block_runs(page, directory, servers, monkeypatch):
    """An example that does not work is worse than none: it is the first thing a reader tries."""
    servers(page)
    namespace = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", namespace)
    blocks = [block for block in blocks_of(page) if block.not_run is None]
    missing = [tool for tool in ("bash", "curl") if shutil.which(tool) is None]
    if missing and any(block.language == "console" for block in blocks):
        pytest.skip(f"declared: {' and '.join(missing)} cannot be found on this machine")
    for block in blocks:
        if block.title and block.language == "python":
            (directory / block.title).write_text(block.code, encoding="utf-8")
    with Terminal(directory) as terminal:
        for block in blocks:
            RUN[block.language](block, directory, namespace, terminal)
    for loop in [value for value in vars(namespace).values() if isinstance(value, asyncio.AbstractEventLoop)]:
        loop.close()  # what a platform would keep as long as the process
        asyncio.set_event_loop(None)


def run_python(block, directory, namespace, terminal):
    padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
    code = compile(padded, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    cell = eval(code, namespace.__dict__)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(cell)


def run_diff(block, directory, namespace, terminal):
    assert block.title, f'{block.place}: which file is it? ```diff title="app.py"'
    lines = block.code.splitlines()
    before, after = ("\n".join(line[1:] for line in lines if not line.startswith(other)) for other in "+-")
    compile(before, block.title, "exec", dont_inherit=True)
    file = directory / block.title
    file.write_text(after, encoding="utf-8")
    exec(compile(after, file, "exec", dont_inherit=True), namespace.__dict__)  # some frameworks read the source of their handlers


def run_console(block, directory, namespace, terminal):
    commands = re.split(r"^\$ ", block.code, flags=re.MULTILINE)
    assert not commands[0].strip(), f"{block.place}: begin with a command, $ in front"
    for text in commands[1:]:
        command, _, expected = text.partition("\n")
        while command.endswith("\\"):
            more, _, expected = expected.partition("\n")
            command = f"{command}\n{more}"
        output = terminal.run(command).strip()
        pattern = ".*?".join(map(re.escape, expected.strip().split("...")))
        assert not expected.strip() or re.fullmatch(pattern, output, re.DOTALL), f"{block.place}: {command}\n{output}"


def run_json(block, directory, namespace, terminal):
    document = json.loads(block.code)
    if block.title != "answer.json":
        return
    answer = namespace.answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.status_code == document["status"]
    assert matches(document, answer.json()), f"{block.place}: {answer.text}"


def matches(shown, sent):
    """Return whether a JSON value is the one that is shown, ``...`` standing for anything in a text."""
    if isinstance(shown, dict) and isinstance(sent, dict):
        return shown.keys() == sent.keys() and all(matches(value, sent[name]) for name, value in shown.items())
    if isinstance(shown, str) and isinstance(sent, str):
        return re.fullmatch(".*?".join(map(re.escape, shown.split("..."))), sent, re.DOTALL) is not None
    return type(shown) is type(sent) and shown == sent


def look_at_text(block, directory, namespace, terminal):
    assert not re.search(r"^\$ |^import |^from \w+ import ", block.code, re.MULTILINE), f"{block.place}: this is code, name its language"


def write_js(block, directory, namespace, terminal):
    assert block.title, f'{block.place}: which file is it? ```js title="chat.js"'
    (directory / block.title).write_text(block.code, encoding="utf-8")


RUN = {"python": run_python, "diff": run_diff, "console": run_console, "js": write_js, "json": run_json, "text": look_at_text}


def test_what_is_not_run_is_listed():
    """Each exception is a decision, made here with its reason."""
    found = {name_of(page): [block.not_run for block in blocks_of(page) if block.not_run] for page in pages()}
    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in pages()])
def test_every_link_leads_somewhere(page):
    """A page that was moved leaves links behind, and nobody clicks them all."""
    for target in links_of(page):
        assert "://" not in target, f"{name_of(page)}: {target} leaves the docs, and no test could tell when it is gone"
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{name_of(page)}: {target} does not exist"
        assert file.is_relative_to(ROOT)
        assert not anchor or anchor in anchors_of(file), f"{name_of(page)}: {target} has no such heading"


def test_every_page_can_be_reached_from_the_first():
    """A page without a link to it is read by nobody."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        waiting += [(page.parent / target.partition("#")[0]).resolve() for target in links_of(page) if "://" not in target]
    assert set(pages()) <= reached

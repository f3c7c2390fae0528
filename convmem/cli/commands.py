"""The commands: ``convmem demo``, ``convmem check``, ``convmem migrate`` and ``convmem version``."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import platform
import socket
import sys
import threading
import time
import webbrowser
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from convmem import ConfigurationError, Settings, StoreUnavailable, __version__
from convmem.cli.terminal import EXIT_CONFIGURATION, EXIT_STORE_DOWN, say, sentences, settings_or_exit
from convmem.middleware import identity_policy_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convmem.stores.base import Health, Store

DEMO_STORE = "sqlite:///convmem-demo.db"
PORTS_TRIED = 50

app = typer.Typer(
    name="convmem",
    help="Conversation memory for any ASGI app.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def demo(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every network this machine is in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; when it is taken, the next free one. 0: any.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="How many processes answer.")] = 1,
    store: Annotated[
        str | None, typer.Option(help=f"The URL of the store that keeps the conversations: else CONVMEM_STORE, else {DEMO_STORE}.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,  # noqa: FBT002 - an option of a command
) -> None:
    """Chat in a browser, kill the server, start it again, and go on."""
    import uvicorn

    import convmem.demo.app  # noqa: F401 - what is missing is missed here, and not in a worker

    _configure_workers(store)
    settings = settings_or_exit()
    _check_or_exit(settings)
    free = _free_port(host, port)
    url = f"http://{_shown_host(host)}:{free}"
    if free != port and port:
        say(f"Port {port} is taken; this is on {free}.", style="yellow")
    if workers > 1 and settings.store_url.reach == "process":
        say(f"The store {settings.store_url} is one process's own: {workers} workers will not see what the others store.", style="yellow")
    say(f"convmem demo   {url}", style="bold")
    say(f"stored in      {settings.store_url}")
    with_workers = f" with {workers} workers, each replaced when it is killed" if workers > 1 else ""
    say(f"process        {os.getpid()}{with_workers}; Ctrl-C stops it")
    if browser and _has_screen():
        threading.Thread(target=_open_when_it_answers, args=(url, _shown_host(host), free), daemon=True).start()
    uvicorn.run(
        "convmem.demo.app:from_environment",
        factory=True,
        host=host,
        port=free,
        workers=workers,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )


@app.command()
def check(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what is set, whether the store answers, and how a request would be identified.

    Ends with 0 when all is well, with 1 when the store does not answer, with 2 when a setting cannot work.
    """
    report = _report()
    if as_json:
        sys.stdout.write(f"{json.dumps(asdict(report), indent=2)}\n")
    else:
        _show(report)
    raise typer.Exit(report.exit_code)


@app.command()
def migrate(
    *,
    as_sql: Annotated[bool, typer.Option("--sql", help="Print the statements instead, for whoever may run them.")] = False,
) -> None:
    """Make the tables of a PostgreSQL store, or bring them up to this version. Twice is as good as once.

    Ends with 0 when the tables are there, with 1 when the store does not answer or a right is missing, with 2 when a setting
    cannot work.
    """
    settings = settings_or_exit()
    if settings.store.scheme != "postgresql":
        say(f"The store {settings.store} has no tables to make: it makes what it needs by itself.")
        return
    if as_sql:
        from convmem.stores.postgres_schema import migration_sql

        sys.stdout.write(migration_sql(settings.namespace))
        return
    with sentences():
        applied = asyncio.run(_migrate(settings))
    say(f"Applied {', '.join(applied)}." if applied else "The tables are up to date.")


@app.command()
def version() -> None:
    """Print the version."""
    say(f"convmem {__version__} on Python {platform.python_version()}")


@dataclass
class Report:
    """What ``convmem check`` found. Nothing in it is secret.

    Attributes:
        ok: Whether an app with these settings would start, and find its store.
        problems: What stops it.
        notices: What does not stop it, and should be known.
        store: What the store says of itself; None when it did not answer.
        identity: How a request would be identified, one sentence each.
        settings: Each with its variable, its value and where that came from.
    """

    ok: bool = True
    exit_code: int = 0
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    store: dict[str, str] | None = None
    identity: list[str] = field(default_factory=list)
    settings: list[dict[str, str]] = field(default_factory=list)

    def fail(self, exit_code: int, problem: str) -> None:
        """Add what stops an app; the first one decides how the command ends."""
        self.ok = False
        self.exit_code = self.exit_code or exit_code
        self.problems.append(problem)


def _report() -> Report:
    report = Report()
    try:
        settings = Settings.from_environment()
    except ConfigurationError as error:
        report.fail(EXIT_CONFIGURATION, str(error))
        return report
    report.notices += settings.notices
    report.settings += [line._asdict() for line in settings.describe()]
    try:
        store = settings.open_store()
        report.identity += _identification(settings)
        report.store = asdict(asyncio.run(_health(store)))
    except ConfigurationError as error:
        report.fail(EXIT_CONFIGURATION, str(error))
    except StoreUnavailable as error:
        report.fail(EXIT_STORE_DOWN, str(error))
    return report


async def _migrate(settings: Settings) -> tuple[str, ...]:
    async with settings.open_store() as store:
        from convmem import PostgresStore

        assert isinstance(store, PostgresStore)
        return await store.migrate()


async def _health(store: Store) -> Health:
    async with store:
        return await store.check()


def _identification(settings: Settings) -> Iterator[str]:
    """Say in which order a request is looked at.

    Raises:
        ConfigurationError: No request could be identified so, or there is no key to sign a visitor's token with.
    """
    visitor = identity_policy_of(settings).visitor
    ways = {
        "user": 'the user who is signed in (scope["user"])',
        "visitor": f"the visitor of the signed cookie {visitor.full_cookie_name} or the header {visitor.header}",
    }
    yield f"Who: {', else '.join(ways[way] for way in settings.identity)}."
    if settings.trust_session_header:
        yield f"A request without any of these is trusted: each id in {settings.session_header} is its own owner."
    named = [_source_of_id(source, settings) for source in settings.session_from]
    yield f"Which of their conversations: {' or '.join(named) or 'no request says'}; without it, the one called default."
    if settings.client_ids == "issued":
        yield "Only ids that were handed out are accepted; any other is a 404."
    else:
        yield "An id nobody has used yet begins a new conversation of its owner's."
    if "visitor" in settings.identity:
        where = {"environment": "CONVMEM_SECRET_KEY", "store": "a key that is kept in the store"}[settings.key_source()]
        yield f"Visitors' tokens are signed with {where}."


def _source_of_id(source: str, settings: Settings) -> str:
    kind, _, rest = source.partition(":")
    return {"header": f"the header {settings.session_header}", "query": f"?{rest}=", "path": f"the path {rest}"}[kind]


def _show(report: Report) -> None:
    if report.settings:
        say("Settings", style="bold")
        name = max(len(line["variable"]) for line in report.settings)
        value = min(48, max(len(line["value"]) for line in report.settings))
        for line in report.settings:
            style = "dim" if line["source"] == "default" else ""
            say(f"  {line['variable']:<{name}}  {line['value']:<{value}}  {line['source']}", style=style)
    if report.identity:
        say("\nIdentity", style="bold")
        for sentence in report.identity:
            say(f"  {sentence}")
    if report.store:
        say("\nStore", style="bold")
        for key, text in report.store.items():
            say(f"  {key:<10}  {text}")
    for notice in report.notices:
        say(f"\nNote: {notice}", style="yellow")
    for problem in report.problems:
        say(f"\nWrong: {problem}", style="red")
    say("\nAll is well." if report.ok else "\nAn app with these settings does not work.", style="bold")


def _configure_workers(store: str | None) -> None:
    """Say what every worker is to use. Workers are processes: the environment is what they share."""
    environment = os.environ  # noqa: TID251 - set for the workers, which read it through convmem.config
    if store is not None:
        environment.pop("CONVMEM_STORE_FILE", None)
        environment["CONVMEM_STORE"] = store
    defaults = {
        "CONVMEM_STORE": DEMO_STORE,
        "CONVMEM_SECRET_KEY": "store",  # nobody has to make a key to try this
        "CONVMEM_COOKIE_SECURE": "never",  # the demo speaks plain HTTP
        "CONVMEM_LEASE": "3s",  # who kills a worker in the middle of an answer wants to go on soon
    }
    for variable, value in defaults.items():
        if not environment.get(variable) and not environment.get(f"{variable}_FILE"):
            environment[variable] = value


def _check_or_exit(settings: Settings) -> None:
    with sentences():
        asyncio.run(_health(settings.open_store()))


def _free_port(host: str, port: int) -> int:
    """Return the port, or the next free one, or for 0 any; exit with a sentence when the address cannot be listened on."""
    last = port
    for last in range(port, min(port + PORTS_TRIED, 65536)):
        try:
            return _bind(host, last)
        except OSError as error:
            if not _is_taken(error):
                say(f"Nothing can listen on {host}, port {last}: {error.strerror or error}.", style="red", error=True)
                raise typer.Exit(EXIT_CONFIGURATION) from None
    say(f"The ports from {port} to {last} are all taken; name another with --port.", style="red", error=True)
    raise typer.Exit(EXIT_CONFIGURATION)


def _bind(host: str, port: int) -> int:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with closing(socket.socket(family, kind, protocol)) as probe:
        if os.name == "posix":  # what a server does that has just been killed and starts again; elsewhere it means something else
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def _is_taken(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE or getattr(error, "winerror", None) in (10013, 10048)


def _shown_host(host: str) -> str:
    """Return the name by which this machine's browser reaches the host."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _has_screen() -> bool:
    """Return whether a browser that opens would be seen by whoever typed the command."""
    environment = os.environ  # noqa: TID251 - the desktop's variables, not ours
    if "SSH_CONNECTION" in environment:
        return False
    return sys.platform in ("darwin", "win32") or any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _open_when_it_answers(url: str, host: str, port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection((host.strip("[]"), port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            webbrowser.open(url)
            return

"""The commands on stored conversations: ``convmem list``, ``delete``, ``export``, ``import`` and ``prune``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from convmem import (
    Imported,
    LeftOut,
    Receipt,
    SessionKey,
    Settings,
    conversations,
    delete_owner,
    delete_tenant,
    export_conversation,
    export_owner,
    export_tenant,
    import_conversations,
    prune as prune_store,
)
from convmem.cli.commands import app
from convmem.cli.terminal import EXIT_UNFINISHED, Progress, say, sentences, settings_or_exit, stop
from convmem.sources import SOURCES
from convmem.surroundings import format_duration, parse_age

if TYPE_CHECKING:
    from convmem.stores.base import Store

_AGAIN = "What was deleted stays deleted; run it again."
_NAMED = 10

Owner = Annotated[str | None, typer.Option(help="Whose: user:IDENTITY, visitor:ID or header:ID.")]
Tenant = Annotated[str | None, typer.Option(help="In which tenant; without an owner, all of it. An app without tenants has the empty one.")]


@app.command("list")
def list_(
    owner: Annotated[str, typer.Option(help="Whose: user:IDENTITY, visitor:ID or header:ID.")],
    tenant: Annotated[str, typer.Option(help="In which tenant.")] = "",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List an owner's conversations, the last written first: session id, turns, when it was last written."""
    settings = settings_or_exit()

    async def run() -> None:
        async with _store(settings) as store:
            after: str | None = None
            while True:
                page = await conversations(owner, tenant=tenant, store=store, after=after)
                for item in page.items:
                    written = item.updated_at.isoformat(timespec="seconds")
                    facts = {"session_id": item.session_id, "turns": item.turns, "updated_at": written}
                    say(json.dumps(facts) if as_json else f"{item.session_id}  {item.turns}  {written}")
                after = page.after
                if after is None:
                    return

    with sentences():
        asyncio.run(run())


@app.command()
def delete(
    owner: Owner = None,
    tenant: Tenant = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete every conversation of an owner, or with --tenant alone of a tenant.

    Ends with 0 when nothing is left, with 1 when something is, or the store does not answer, with 2 when it cannot begin.
    """
    whose = _whose(owner, tenant)
    settings = settings_or_exit()
    if not yes:
        if not sys.stdin.isatty():
            stop(f"This deletes every conversation of {whose}, and nobody is here to confirm it; add --yes.")
        typer.confirm(f"Delete every conversation of {whose} in {settings.store_url}?", abort=True)

    async def run(progress: Progress) -> Receipt:
        async with _store(settings) as store:

            def tell(receipt: Receipt) -> None:
                progress.tell(f"{receipt.deleted} deleted")

            if owner is None:
                return await delete_tenant(tenant or "", store=store, progress=tell)
            return await delete_owner(owner, tenant=tenant or "", store=store, progress=tell)

    with sentences(again=_AGAIN), Progress() as progress:
        receipt = asyncio.run(run(progress))
    say(f"{_counted(receipt.deleted)} deleted.")
    _end(receipt)


@app.command()
def export(
    owner: Owner = None,
    tenant: Tenant = None,
    session: Annotated[str | None, typer.Option(help="Only this one of the owner's conversations.")] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write, which must not exist yet; else standard output.")] = None,
) -> None:
    """Write every conversation of an owner as lines of JSON, or with --tenant alone of a tenant.

    Ends with 0 when the export is whole, with 1 when the store does not answer, with 2 when it cannot begin.
    """
    _whose(owner, tenant)
    if session is not None and owner is None:
        stop("Name the owner of that conversation with --owner.")
    settings = settings_or_exit()

    async def run(file: BinaryIO, progress: Progress) -> dict[str, int]:
        async with _store(settings) as store, aclosing(_exported(store, owner, tenant or "", session)) as pieces:
            last, begun = b"", 0
            async for piece in pieces:
                file.write(piece)
                last = piece
                begun += piece.startswith(b'{"type":"conversation",')
                progress.tell(f"{begun} exported")
            return json.loads(last)  # type: ignore[no-any-return]

    with sentences(again="The export is not whole."), Progress() as progress, _opened(output) as file:
        end = asyncio.run(run(file, progress))
    damaged = f" {end['corrupt']} entries could not be decoded; they are named, and their bytes are there." if end["corrupt"] else ""
    say(f"{_counted(end['conversations'])} with {end['messages']} messages exported.{damaged}", error=True)


@app.command("import")
def import_(
    place: Annotated[str, typer.Argument(help="A file, - for standard input, or the URL of a database.")],
    source: Annotated[str, typer.Option("--from", help=f"Who wrote it: {', '.join(SOURCES)}.")] = "convmem",
    owner: Annotated[str | None, typer.Option(help="Whose all of them are to be: user:IDENTITY, visitor:ID or header:ID.")] = None,
    ids: Annotated[str | None, typer.Option(help="What their session ids look like, such as {user}:{session}.", metavar="PATTERN")] = None,
    tenant: Annotated[str | None, typer.Option(help="In which tenant they are to be.")] = None,
    table: Annotated[str | None, typer.Option(help="The table they are in; else the library's default.")] = None,
    prefix: Annotated[str | None, typer.Option(help="What their keys in Redis begin with; else the library's default.")] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be carried, and what could not.")] = False,
    undelete: Annotated[bool, typer.Option("--undelete", help="Carry what was deleted here, too.")] = False,
) -> None:
    """Read conversations from an export or from another library's store. Twice is as good as once.

    Ends with 0 when all are here, with 1 when something could not be carried, which is said line by line, or a place cannot be read or a
    store does not answer, with 2 when it cannot begin.
    """
    settings = settings_or_exit()

    async def run(progress: Progress) -> Imported:
        def tell(receipt: Imported) -> None:
            progress.tell(f"{_counted(receipt.conversations)}, {receipt.messages} messages {'read' if dry_run else 'stored'}")

        async with _store(settings, may_be_new=True) as store:
            return await import_conversations(
                place, source, owner=owner, ids=ids, tenant=tenant, table=table, prefix=prefix,
                store=store, dry_run=dry_run, undelete=undelete, progress=tell, left_out=_name,
            )  # fmt: skip

    with sentences(again="What was stored stays stored; run it again."), Progress() as progress:
        receipt = asyncio.run(run(progress))
    would_be = "would be " if dry_run else ""
    say(
        f"{_counted(receipt.conversations)} {would_be}here, {receipt.already} of them before; {receipt.messages} messages {would_be}stored."
    )
    if receipt.renamed:
        say(f"{_counted(receipt.renamed)} {would_be}here under a new id: theirs is not 1 to 128 of A-Z a-z 0-9 _ -.")
    if receipt.left_out:
        say(f"{receipt.left_out} could not be carried; they are named above.", style="red", error=True)
        raise typer.Exit(EXIT_UNFINISHED)


def _name(what: LeftOut) -> None:
    """Say what could not be carried: to standard error, so that it can go to a file."""
    message = "" if what.message is None else f", message {what.message}"
    say(f"not carried: {what.conversation!r}{message}: {what.reason}", error=True)


@app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(help="What nobody has written for so long, such as 90d: else CONVMEM_RETENTION.", metavar="AGE")
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many.")] = False,
) -> None:
    """Delete what nobody has written for long, in every tenant, and what has outlived its TTL: the line for a cron job.

    Ends with 0 when all is done, with 1 when something could not be deleted, or the store does not answer, with 2 when a setting
    or an option cannot work.
    """
    settings = settings_or_exit()
    age = settings.retention if older_than is None else _age(older_than)
    if age is None:
        say("CONVMEM_RETENTION is unset: only what has outlived its TTL is deleted. Set it, or say --older-than 90d.", error=True)

    async def run(progress: Progress) -> Receipt:
        async with _store(settings) as store:

            def tell(receipt: Receipt) -> None:
                progress.tell(f"{receipt.deleted} deleted")

            return await prune_store(age, store=store, dry_run=dry_run, progress=tell)

    with sentences(again=_AGAIN), Progress() as progress:
        receipt = asyncio.run(run(progress))
    which = "expired" if age is None else f"not written for {format_duration(age)}, or expired"
    say(f"{_counted(receipt.deleted)} {'would be ' if dry_run else ''}deleted: {which}.")
    if receipt.spared:
        say(f"{_counted(receipt.spared)} spared: in use, or written meanwhile.")
    _end(receipt)


def _age(text: str) -> timedelta:
    try:
        return parse_age(text)
    except ValueError as error:
        stop(f"--older-than {error}.")


def _whose(owner: str | None, tenant: str | None) -> str:
    """Return how to speak of whom a command is about; exit when it names nobody."""
    if owner is None and tenant is None:
        stop("Say whose: --owner user:42, or --tenant NAME for everybody's in it.")
    with sentences():
        SessionKey(owner or "user:-", tenant=tenant or "")
    place = f"the tenant {tenant!r}" if tenant else "the tenant without a name" if owner is None else ""
    return f"{owner}{f' in {place}' if place else ''}" if owner else f"everybody in {place}"


def _store(settings: Settings, *, may_be_new: bool = False) -> Store:
    """Return the app's store; exit when what the settings name cannot be it."""
    with sentences():
        url = settings.store_url
        if url.reach == "process":
            stop(f"CONVMEM_STORE is {url}: an app keeps that in its own process, where no command reaches it.")
        if url.scheme == "sqlite" and not Path(url.path).exists() and not may_be_new:
            stop(f"{url} does not exist; run this in the app's working directory, or set CONVMEM_STORE as it is set there.")
        return settings.open_store()


def _exported(store: Store, owner: str | None, tenant: str, session: str | None) -> AsyncGenerator[bytes, None]:
    if owner is None:
        return export_tenant(tenant, store=store)
    if session is None:
        return export_owner(owner, tenant=tenant, store=store)
    return export_conversation(SessionKey(owner, session, tenant), store=store)


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Return what to write to. A file has its name only when it is whole, and is readable by nobody else."""
    if output is None:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # whoever reads it has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_UNFINISHED) from None
        return
    if output.exists():
        stop(f"{output} exists; remove it, or name another file.")
    try:
        number, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent)
    except OSError as error:
        stop(f"{output} cannot be written: {error.strerror or error}.")
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(output)
    finally:
        with suppress(FileNotFoundError):
            Path(name).unlink()


def _counted(number: int) -> str:
    return f"{number} conversation{'' if number == 1 else 's'}"


def _end(receipt: Receipt) -> None:
    """Say what is left, without naming anybody, and exit accordingly."""
    if receipt.failed:
        some = ", ".join(key.digest for key in receipt.failed[:_NAMED])
        more = ", …" if len(receipt.failed) > _NAMED else ""
        say(f"{_counted(len(receipt.failed))} could not be deleted (by digest: {some}{more}); run it again.", style="red", error=True)
    elif not receipt.whole and not receipt.spared:
        say("New ones were written all the time, so some are left; sign the owner out, and run it again.", style="red", error=True)
    if not receipt.whole:
        raise typer.Exit(EXIT_UNFINISHED)

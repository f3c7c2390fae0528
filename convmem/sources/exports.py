"""What `convmem.export` writes, read back: every entry with its own id, its turn and its body."""

from __future__ import annotations

import asyncio
import json
import sys
from base64 import b64decode
from collections.abc import AsyncGenerator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from convmem.exceptions import InvalidIdentity, SourceUnreadable
from convmem.keys import SessionKey
from convmem.messages import Message, decode_body
from convmem.sources.base import Batch, LeftOut, Source
from convmem.stores.base import ENTRY_FORMAT, Entry

FORMAT = 1
"""The version of the format; a later one is written only when a reader of this one would misunderstand it."""

_READ_AT_ONCE = 2**20
_UNREADABLE = (Message.user(""),)
"""What an entry that cannot be decoded counts as."""


def encoded(document: object) -> bytes:
    """Return JSON without a line break; in it every line break of a text is escaped (RFC 8259 §7), and half a surrogate pair too."""
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(document, separators=(",", ":")).encode()


async def read_export(place: str, *, owner: str | None = None, tenant: str | None = None) -> Source:
    """Read an export.

    Args:
        place: The file; ``-`` is standard input.
        owner: Whose the conversations are to be; None: whose they were.
        tenant: In which tenant they are to be; None: in which they were.

    Raises:
        SourceUnreadable: The file cannot be read, is no export, or is one of a later version.
    """
    export = _Export(place, owner, tenant)
    async for line in _lines(place):
        for said in export.read(line):
            yield said
    for said in export.ended():
        yield said


async def _lines(place: str) -> AsyncGenerator[bytes, None]:
    try:
        file = nullcontext(sys.stdin.buffer) if place == "-" else await asyncio.to_thread(Path(place).open, "rb")
        with file as lines:
            while some := await asyncio.to_thread(lines.readlines, _READ_AT_ONCE):
                for line in some:
                    yield line
    except OSError as error:
        raise SourceUnreadable(place, error.strerror or str(error)) from error


class _Export:
    """An export that is read line by line.

    Attributes:
        line: How many lines were read.
    """

    def __init__(self, place: str, owner: str | None, tenant: str | None) -> None:
        self._place = place
        self._owner = owner
        self._tenant = tenant
        self.line = 0
        self._whole = False
        self._name = ""
        self._key: SessionKey | None = None
        self._entries = 0

    def read(self, line: bytes) -> Iterator[Batch | LeftOut]:
        self.line += 1
        try:
            document = json.loads(line)
            kind = document["type"]
            if self.line == 1:
                self._begin(kind, document)
            elif kind == "conversation":
                yield from self._conversation(document)
            elif kind == "entry" and self._key is not None:
                self._entries += 1
                yield self._entry(self._key, document)
            elif kind == "conversation_end" and self._key is not None:
                yield from self._conversation_end(document)
            elif kind == "end":
                self._whole = True
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if self.line == 1:
                raise SourceUnreadable(self._place, "it is no export of convmem") from error
            yield LeftOut(self._name, f"line {self.line} of the file is damaged: {type(error).__name__}")

    def ended(self) -> Iterator[LeftOut]:
        if self.line == 0:
            raise SourceUnreadable(self._place, "it is empty, and so no export of convmem")
        if not self._whole:
            yield LeftOut(self._name, "the file breaks off here: it has no last line")

    def _begin(self, kind: str, document: dict[str, Any]) -> None:
        version = document["version"]
        if kind != "export" or not isinstance(version, int):
            raise ValueError(kind)
        if version > FORMAT:
            raise SourceUnreadable(self._place, f"it is of version {version}, and this convmem reads up to {FORMAT}; use a newer one")

    def _conversation(self, document: dict[str, Any]) -> Iterator[LeftOut]:
        owner, session_id, tenant = document["owner"], document["session_id"], document["tenant"]
        self._name, self._key, self._entries = "/".join([tenant, owner, session_id] if tenant else [owner, session_id]), None, 0
        try:
            self._key = SessionKey(self._owner or owner, session_id, tenant if self._tenant is None else self._tenant)
        except InvalidIdentity as error:
            yield LeftOut(self._name, str(error))

    def _entry(self, key: SessionKey, document: dict[str, Any]) -> Batch:
        if "messages" in document:
            body = encoded(document["messages"])
            said = tuple(decode_body(body))
        else:
            body, said = b64decode(document["body"], validate=True), _UNREADABLE
        batch = Batch(
            self._name,
            key,
            id=document["id"],
            turn=document["turn"],
            body=body,
            said=said,
            closing=document["closing"] is True,
            format=int(document.get("format", ENTRY_FORMAT)),
            key_id=str(document.get("key_id", "")),
        )
        Entry(batch.id, batch.turn, "-", "-")  # refuses names no store could keep
        return batch

    def _conversation_end(self, document: dict[str, Any]) -> Iterator[LeftOut]:
        if document["entries"] != self._entries:
            yield LeftOut(self._name, f"the file has {self._entries} of its {document['entries']} entries")

"""From the session ids of other libraries to addresses: whose a conversation is, and which."""

from __future__ import annotations

import re
from hashlib import sha256

from convmem.exceptions import ConfigurationError, InvalidIdentity
from convmem.keys import DEFAULT_SESSION, OWNER_KINDS, SessionKey, valid_session_id

_FIELDS = (*OWNER_KINDS, "session", "tenant")


class Addresses:
    """How a session id of theirs becomes an address. Other libraries know no owners: either all are one owner's, or the id says whose."""

    def __init__(self, owner: str | None, ids: str | None, tenant: str | None) -> None:
        """Take `owner`, `ids` and `tenant` of `convmem.import_conversations`.

        Raises:
            ConfigurationError: They say too little, or say something twice.
        """
        pattern = "{session}" if ids is None and owner is not None else ids or ""
        fields = re.findall(r"\{(\w+)\}", pattern)
        owners = [field for field in fields if field in OWNER_KINDS]
        if unknown := sorted({*fields} - {*_FIELDS}):
            msg = f"ids has {{{unknown[0]}}}; use {', '.join(f'{{{field}}}' for field in _FIELDS)}."
            raise ConfigurationError(msg)
        if len(fields) != len({*fields}) or len(owners) + (owner is not None) != 1:
            msg = "Say once whose the conversations are: with owner, such as user:42, or with ids, such as {user}:{session}."
            raise ConfigurationError(msg)
        if tenant is not None and "tenant" in fields:
            msg = "The tenant is given, and ids has {tenant}; leave one out."
            raise ConfigurationError(msg)
        parts = re.split(r"\{(\w+)\}", pattern)
        self._pattern = re.compile("".join(f"(?P<{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)), re.DOTALL)
        self._ids = pattern
        self._owner = owner
        self._tenant = tenant

    def of(self, name: str) -> tuple[SessionKey, bool]:
        """Return the address of the conversation with this id, and whether its session id is another one than it had.

        Raises:
            InvalidIdentity: It has none.
        """
        found = self._pattern.fullmatch(name)
        if found is None:
            msg = f"Its id does not look like {self._ids}."
            raise InvalidIdentity(msg)
        said = found.groupdict()
        owner = self._owner or next(f"{kind}:{said[kind]}" for kind in OWNER_KINDS if kind in said)
        session = said.get("session", DEFAULT_SESSION)
        renamed = not valid_session_id(session)
        if renamed:
            session = f"imported-{sha256(session.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
        return SessionKey(owner, session, self._tenant or said.get("tenant", "")), renamed

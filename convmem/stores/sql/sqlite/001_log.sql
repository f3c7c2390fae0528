-- The log. An address keeps one row in "conversation" through all its lives: its head, its lease and its tombstone.
-- An entry's id is its conversation's id in the upper bits and its position in the lower 32: one range scan reads a window.
-- A turn writes its entry, its conversation's row, and one index, at whose end it stands with all that are stored meanwhile.

CREATE TABLE conversation (
    id       INTEGER PRIMARY KEY,
    tenant   TEXT NOT NULL,
    owner    TEXT NOT NULL,
    session  TEXT NOT NULL,
    epoch    TEXT NOT NULL DEFAULT '',     -- empty: absent
    n        INTEGER NOT NULL DEFAULT 0,
    entry    TEXT NOT NULL DEFAULT '',     -- id of entry n
    turns    INTEGER NOT NULL DEFAULT 0,
    start    INTEGER NOT NULL DEFAULT 0,
    pinned   TEXT NOT NULL DEFAULT '',     -- positions, separated by commas
    created  REAL NOT NULL DEFAULT 0,
    updated  REAL NOT NULL DEFAULT 0,
    hour     INTEGER NOT NULL DEFAULT 0,   -- of "updated", since 1970: an index of it stays as it is through most turns
    expires  REAL,                         -- seconds since 1970; null: never
    token    TEXT NOT NULL DEFAULT '',     -- the lease
    taken    REAL NOT NULL DEFAULT 0,
    until    REAL NOT NULL DEFAULT 0,
    mark     TEXT NOT NULL DEFAULT '',     -- the tombstone
    ended    TEXT NOT NULL DEFAULT '{}',   -- epoch -> when it ended
    deleted  REAL NOT NULL DEFAULT 0,
    UNIQUE (tenant, owner, session)
);

CREATE INDEX conversation_by_owner ON conversation (tenant, owner, hour) WHERE epoch <> '';

CREATE TABLE entry (
    id       INTEGER PRIMARY KEY,
    visible  INTEGER NOT NULL,             -- 0: superseded, hidden, or not a turn's
    packed   BLOB NOT NULL                 -- see packing.py: turn and token are in place, from the 9th and the 25th byte on, 16 each
);

CREATE INDEX entry_by_turn ON entry (substr(packed, 9, 16));

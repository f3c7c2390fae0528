-- The log. An address keeps one row in "conversation" through all its lives: its head, its lease and its tombstone.
-- An entry's id is its conversation's id in the upper bits and its position in the lower 32: one range scan reads a window.

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
    expires  REAL,                         -- seconds since 1970; null: never
    token    TEXT NOT NULL DEFAULT '',     -- the lease
    taken    REAL NOT NULL DEFAULT 0,
    until    REAL NOT NULL DEFAULT 0,
    mark     TEXT NOT NULL DEFAULT '',     -- the tombstone
    ended    TEXT NOT NULL DEFAULT '{}',   -- epoch -> when it ended
    deleted  REAL NOT NULL DEFAULT 0,
    UNIQUE (tenant, owner, session)
);

CREATE INDEX conversation_by_update ON conversation (tenant, owner, updated, session) WHERE epoch <> '';
CREATE INDEX conversation_absent ON conversation (until) WHERE epoch = '';
CREATE INDEX conversation_by_expiry ON conversation (expires) WHERE expires IS NOT NULL;

CREATE TABLE entry (
    id       INTEGER PRIMARY KEY,
    entry    TEXT NOT NULL,
    turn     TEXT NOT NULL,
    token    TEXT NOT NULL,
    kind     TEXT NOT NULL,
    closing  INTEGER NOT NULL,
    visible  INTEGER NOT NULL,             -- 0: superseded, hidden, or not a turn's
    count    INTEGER NOT NULL,
    turns    INTEGER NOT NULL,
    start    INTEGER NOT NULL,
    pinned   TEXT NOT NULL,
    hides    TEXT NOT NULL,
    format   INTEGER NOT NULL,
    key_id   TEXT NOT NULL,
    stored   REAL NOT NULL,
    body     BLOB NOT NULL
);

CREATE INDEX entry_by_turn ON entry (turn);

-- The log. The schema is named convmem here; another one is put in its place. No sequence, trigger, function or foreign key.
--
-- A conversation's id is the first half of the SHA-256 of its address: no counter, and nothing to look up before a statement.
-- Epochs, marks, tokens and the ids of entries are names packed as packing.py says; none is an empty value.

CREATE SCHEMA IF NOT EXISTS convmem;

CREATE TABLE IF NOT EXISTS convmem.convmem_migration (
    number   integer PRIMARY KEY,
    applied  timestamptz NOT NULL DEFAULT now()
);

-- One row for each address, through all its lives: where its log ends, and its tombstone. No index holds a column that every
-- append changes ("day" changes once a day), so that the update stays on the row's page (HOT) and writes to no index.
CREATE TABLE convmem.convmem_conversation (
    id       uuid PRIMARY KEY,
    created  timestamptz NOT NULL,
    updated  timestamptz NOT NULL,
    expires  timestamptz,                          -- null: never
    deleted  timestamptz,                          -- the newest delete
    n        integer NOT NULL,
    start    integer NOT NULL,
    turns    integer NOT NULL,
    day      date NOT NULL,                        -- of "updated", in UTC
    tenant   text COLLATE "C" NOT NULL,
    owner    text COLLATE "C" NOT NULL,
    session  text COLLATE "C" NOT NULL,
    epoch    bytea NOT NULL,                       -- empty: absent
    entry    bytea NOT NULL,                       -- id of entry n; of an absent one its newest delete mark
    mark     bytea NOT NULL DEFAULT '',            -- the newest delete mark, also in the next life
    ended    jsonb NOT NULL DEFAULT '{}',          -- epoch in hexadecimal -> when a delete ended it, in seconds since 1970
    pinned   integer[]
) WITH (fillfactor = 80);

CREATE INDEX convmem_conversation_of_owner ON convmem.convmem_conversation (tenant, owner, day DESC) WHERE epoch <> '';
CREATE INDEX convmem_conversation_absent ON convmem.convmem_conversation (deleted) WHERE epoch = '';

-- One row for each entry of the present life. What no statement compares is packed, as it is in Redis: "facts" and "body" behind one
-- another are one packed entry (packing.py), and begin with when it was stored (7 bytes), flags (1), and 16 bytes each of turn, token
-- and id, which statements compare there; the id is left out where it is the turn's (flag 32).
--
-- Out of sight (superseded, hidden, or not a turn's) n is the position below zero: a load steps over all of that along the primary key.
CREATE TABLE convmem.convmem_entry (
    conversation uuid NOT NULL,
    n        integer NOT NULL,
    opens    boolean NOT NULL,                     -- the first entry of its attempt
    facts    bytea NOT NULL,
    body     bytea NOT NULL,
    PRIMARY KEY (conversation, n)
);

ALTER TABLE convmem.convmem_entry ALTER COLUMN body SET STORAGE EXTERNAL;

-- The first 7 bytes of the turn: ids are made in the order of time, so that neighbours are written together, and 7 bytes of it are a
-- sixteenth of a millisecond, or 56 bits of a hash. A statement compares all 16, and the conversation as IS NOT DISTINCT FROM, by which
-- the primary key cannot be searched: this index finds a few rows where that finds the whole conversation. The whole turn and the
-- conversation in the index were 52 bytes for each entry instead of 20.
CREATE INDEX convmem_entry_of_turn ON convmem.convmem_entry (substr(facts, 9, 7));

-- Who holds a conversation, and the head as of the last write: whoever waited for this row compares that head with the one it
-- read. Unlogged: taking a lease costs no flush. A crash of the server empties it, which frees every conversation and no more.
CREATE UNLOGGED TABLE convmem.convmem_lease (
    conversation uuid PRIMARY KEY,
    taken    timestamptz NOT NULL,
    until    timestamptz NOT NULL,
    n        integer NOT NULL,
    day      date NOT NULL,                        -- when it was last written
    token    bytea NOT NULL,                       -- empty: nobody holds it
    epoch    bytea NOT NULL,
    entry    bytea NOT NULL
) WITH (fillfactor = 50);

CREATE INDEX convmem_lease_by_day ON convmem.convmem_lease (day);

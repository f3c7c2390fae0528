-- $1 conversation  $2 tenant  $3 owner  $4 session  $5 a new mark
-- $6 epoch  $7 n  $8 id of the head at which the log must still end; null: wherever it ends
-- $9 how long a tombstone is kept
--
-- Locked in the order of an append: the lease row, the conversation, its entries. Beside it a few addresses are dropped that
-- nobody needs any more: tombstones past their life, and leases of days gone by; those another statement has locked are left.
WITH seen AS (
    SELECT c.id IS NOT NULL AS present, coalesce(c.epoch, '') AS epoch, coalesce(c.n, 0) AS n, coalesce(c.entry, '') AS entry,
        coalesce(c.mark, '') AS mark, coalesce(c.expires <= now(), false) AS expired,
        coalesce(
            (SELECT jsonb_object_agg(life.key, life.value) FROM jsonb_each(c.ended) AS life
             WHERE life.value::float8 > extract(epoch FROM now() - $9::interval)),
            '{}'
        ) || CASE WHEN c.epoch <> '' THEN jsonb_build_object(encode(c.epoch, 'hex'), extract(epoch FROM now())) ELSE '{}' END AS ended
    FROM (SELECT) AS one
    LEFT JOIN convmem.convmem_conversation AS c ON c.id = $1::uuid
), wanted AS (
    SELECT * FROM seen WHERE $6::bytea IS NULL OR (epoch, n, entry) = ($6::bytea, $7::integer, $8::bytea)
), leased AS (
    INSERT INTO convmem.convmem_lease AS l (conversation, token, taken, until, epoch, n, entry, day)
    SELECT $1::uuid, '', now(), '-infinity', '', 0, $5::bytea, (now() AT TIME ZONE 'UTC')::date
    FROM wanted
    ON CONFLICT (conversation) DO UPDATE SET
        token = '', until = '-infinity', epoch = '', n = 0, entry = excluded.entry, day = excluded.day
    RETURNING l.conversation
), moved AS (
    UPDATE convmem.convmem_conversation AS c SET
        epoch = '', n = 0, entry = $5::bytea, turns = 0, start = 0, pinned = NULL, expires = NULL,
        mark = $5::bytea, ended = wanted.ended, deleted = now()
    FROM wanted, leased
    WHERE c.id = leased.conversation AND (c.epoch, c.n, c.entry, c.mark) = (wanted.epoch, wanted.n, wanted.entry, wanted.mark)
    RETURNING c.id
), made AS (
    INSERT INTO convmem.convmem_conversation
        (id, tenant, owner, session, epoch, n, entry, turns, start, created, updated, day, mark, deleted)
    SELECT leased.conversation, $2::text, $3::text, $4::text, '', 0, $5::bytea, 0, 0, now(), now(), (now() AT TIME ZONE 'UTC')::date,
        $5::bytea, now()
    FROM wanted, leased WHERE NOT wanted.present
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), removed AS (
    DELETE FROM convmem.convmem_entry AS e USING moved WHERE e.conversation = moved.id
), forgotten AS (
    DELETE FROM convmem.convmem_conversation
    WHERE epoch = '' AND id <> $1::uuid AND id IN (
        SELECT id FROM convmem.convmem_conversation
        WHERE epoch = '' AND deleted < now() - $9::interval
        ORDER BY deleted LIMIT 10 FOR UPDATE SKIP LOCKED
    )
), cleared AS (
    DELETE FROM convmem.convmem_lease
    WHERE conversation <> $1::uuid AND conversation IN (
        SELECT conversation FROM convmem.convmem_lease
        WHERE day < (now() AT TIME ZONE 'UTC')::date - 1 AND until <= now()
        ORDER BY day LIMIT 10 FOR UPDATE SKIP LOCKED
    )
)
SELECT epoch <> '' AND ($6::bytea IS NOT NULL OR NOT expired) AS existed,
    EXISTS (SELECT FROM wanted) AND NOT EXISTS (SELECT FROM moved) AND NOT EXISTS (SELECT FROM made) AS again,
    EXISTS (SELECT FROM wanted) AS wanted
FROM seen

-- $1 conversation  $2 token  $3 term  $4 epoch  $5 n  $6 id of the head the caller knows
--
-- A live lease is renewed by its token. One that ran out only when nobody holds it and the log still ends at the head: as this
-- statement sees it, and as the lease row says when the statement had to wait for it.
WITH seen AS (
    SELECT coalesce(c.epoch, '') AS epoch, coalesce(c.n, 0) AS n, coalesce(c.entry, '') AS entry, coalesce(l.token, '') AS holder
    FROM (SELECT) AS one
    LEFT JOIN convmem.convmem_conversation AS c ON c.id = $1::uuid
    LEFT JOIN convmem.convmem_lease AS l ON l.conversation = $1::uuid AND l.until > now()
)
INSERT INTO convmem.convmem_lease AS l (conversation, token, taken, until, epoch, n, entry, day)
SELECT $1::uuid, $2::bytea, now(), now() + $3::interval, epoch, n, entry, (now() AT TIME ZONE 'UTC')::date
FROM seen
WHERE holder = $2::bytea OR (holder = '' AND (epoch, n, entry) = ($4::bytea, $5::integer, $6::bytea))
ON CONFLICT (conversation) DO UPDATE SET
    token = excluded.token, until = excluded.until, day = excluded.day,
    taken = CASE WHEN l.token = excluded.token AND l.until > now() THEN l.taken ELSE excluded.taken END
WHERE (l.token = excluded.token AND l.until > now())
    OR (l.until <= now() AND (l.epoch, l.n, l.entry) = ($4::bytea, $5::integer, $6::bytea))
RETURNING true AS renewed

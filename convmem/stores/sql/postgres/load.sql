-- $1 conversation  $2 turn to look up  $3 turns  $4 messages  $5 before    null: not asked for, no limit
-- $6 token  $7 term of the lease to take; null: none
-- $8 how many entries are looked at to find as many messages
--
-- One row has "log" and nothing else; each other row is an entry: those of the window, and those that are pinned before it. Where
-- the window begins is told by the entries that open a turn. It may begin too early, when an edit hid such an entry, never too late.
WITH seen AS (
    SELECT coalesce(c.epoch, '') AS epoch, coalesce(c.n, 0) AS n, coalesce(c.entry, '') AS entry, coalesce(c.turns, 0) AS turns,
        coalesce(c.start, 0) AS start, c.pinned, coalesce(c.expires <= now(), false) AS expired,
        CASE WHEN c.mark <> '' THEN c.deleted END AS deleted, c.ended,
        coalesce(l.token, '') AS holder, l.taken, l.until
    FROM (SELECT) AS one
    LEFT JOIN convmem.convmem_conversation AS c ON c.id = $1::uuid
    LEFT JOIN convmem.convmem_lease AS l ON l.conversation = $1::uuid AND l.until > now()
), found AS (
    SELECT last.n, last.token, last.closing, NOT seen.expired AND EXISTS (
        SELECT FROM convmem.convmem_entry WHERE conversation = $1::uuid AND turn = $2::text AND visible AND n > seen.start
    ) AS visible
    FROM seen, LATERAL (
        SELECT n, token, closing FROM convmem.convmem_entry
        WHERE conversation = $1::uuid AND turn = $2::text ORDER BY n DESC LIMIT 1
    ) AS last
), held AS (
    INSERT INTO convmem.convmem_lease AS l (conversation, token, taken, until, epoch, n, entry, day)
    SELECT $1::uuid, $6::text, now(), now() + $7::interval, epoch, n, entry, (now() AT TIME ZONE 'UTC')::date
    FROM seen
    WHERE $6::text IS NOT NULL AND holder IN ('', $6::text) AND NOT EXISTS (SELECT FROM found WHERE closing)
    ON CONFLICT (conversation) DO UPDATE SET
        token = excluded.token, until = excluded.until, day = excluded.day,
        taken = CASE WHEN l.token = excluded.token AND l.until > now() THEN l.taken ELSE excluded.taken END,
        epoch = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.epoch ELSE l.epoch END,
        n = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.n ELSE l.n END,
        entry = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.entry ELSE l.entry END
    WHERE l.token = excluded.token OR l.until <= now()
    RETURNING l.taken, l.until, l.epoch, l.n, l.entry
), reached AS (
    SELECT max(n) FILTER (WHERE total >= $4::bigint) AS n, count(*) >= $8::bigint AS short
    FROM (
        SELECT e.n, sum(e.count) OVER (ORDER BY e.n DESC ROWS UNBOUNDED PRECEDING) AS total
        FROM seen, LATERAL (
            SELECT n, count FROM convmem.convmem_entry
            WHERE conversation = $1::uuid AND visible AND n > seen.start AND n < coalesce($5::bigint, seen.n + 1)
            ORDER BY n DESC LIMIT $8::bigint
        ) AS e
    ) AS each
), edge AS MATERIALIZED (
    SELECT CASE WHEN expired OR $3::bigint = 0 OR $4::bigint = 0 THEN n ELSE greatest(
        start,
        CASE WHEN $3::bigint IS NOT NULL THEN (
            SELECT e.n - 1 FROM convmem.convmem_entry AS e
            WHERE e.conversation = $1::uuid AND e.visible AND e.opens AND e.n > seen.start AND e.n < coalesce($5::bigint, seen.n + 1)
            ORDER BY e.n DESC OFFSET greatest($3::bigint - 1, 0) LIMIT 1
        ) END,
        CASE WHEN $4::bigint IS NOT NULL THEN (
            SELECT e.n - 1 FROM convmem.convmem_entry AS e
            WHERE e.conversation = $1::uuid AND e.visible AND e.opens AND e.n > seen.start AND e.n <= (SELECT n FROM reached)
            ORDER BY e.n DESC LIMIT 1
        ) END
    ) END AS low,
    CASE WHEN $4::bigint IS NOT NULL THEN (SELECT n IS NULL AND short FROM reached) END IS TRUE AS short
    FROM seen
), shown AS (
    SELECT e.n, stored, count, turns, start, format, closing, kind, entry, turn, token, key_id, pinned, hides, body
    FROM convmem.convmem_entry AS e
    WHERE conversation = $1::uuid AND visible AND n > (SELECT low FROM edge)
        AND n < coalesce($5::bigint, (SELECT n + 1 FROM seen))
)
SELECT ROW(
        seen.epoch, seen.n, seen.entry, seen.turns, seen.start, seen.pinned, seen.expired, seen.deleted, seen.ended::text,
        (SELECT short FROM edge),
        seen.holder, seen.taken, seen.until, now(),
        held.taken, held.until, (held.epoch, held.n, held.entry) IS NOT DISTINCT FROM (seen.epoch, seen.n, seen.entry),
        found.n, found.token, found.closing, found.visible
    ) AS log,
    NULL::bigint AS n, NULL::timestamptz AS stored, NULL::integer AS count, NULL::integer AS turns, NULL::bigint AS start,
    NULL::integer AS format, NULL::boolean AS closing, NULL::text AS kind, NULL::text AS entry, NULL::text AS turn,
    NULL::text AS token, NULL::text AS key_id, NULL::bigint[] AS pinned, NULL::bigint[] AS hides, NULL::bytea AS body
FROM seen LEFT JOIN held ON true LEFT JOIN found ON true
UNION ALL
SELECT NULL, shown.* FROM shown
UNION ALL
SELECT NULL, e.n, e.stored, e.count, e.turns, e.start, e.format, e.closing, e.kind, e.entry, e.turn, e.token, e.key_id, e.pinned,
    e.hides, e.body
FROM seen, unnest(seen.pinned) AS pin (n), convmem.convmem_entry AS e
WHERE e.conversation = $1::uuid AND e.n = pin.n AND e.visible AND e.n > seen.start AND NOT seen.expired
    AND e.n <= (SELECT low FROM edge) AND e.n < coalesce($5::bigint, seen.n + 1)

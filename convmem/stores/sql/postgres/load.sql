-- A window, and with a token the lease.
--
-- One row has "log" and no entry; each other row is an entry: those of the window, and those that are pinned before it. Where the
-- window begins is told by the entries that open a turn. It may begin too early, when an edit hid such an entry, never too late.
WITH
-- turns: how many, null is all of them; token, term: of the lease to take, null is none; turn: the one to look up; messages: how
-- many; looked_at: how many entries are looked at to find as many messages; before: the position where the window ends
-- if one
asked AS NOT MATERIALIZED (
    SELECT NULL::integer AS at, $1::uuid AS id, $2::bigint AS turns, $3::text AS token, $4::interval AS term
    -- if more
        , $5::text AS turn, $6::bigint AS messages, $7::bigint AS looked_at, $8::bigint AS before
    -- end
    -- if one
),
-- end
-- if many
wanted AS MATERIALIZED (
    SELECT at::integer, id, turns, token, term
    FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::interval[]) WITH ORDINALITY AS w (id, turns, token, term, at)
), locked AS MATERIALIZED ( -- nobody waits for a row that somebody else has: whom it concerns asks again, alone
    SELECT l.conversation FROM wanted AS w JOIN convmem.convmem_lease AS l ON l.conversation = w.id WHERE w.token IS NOT NULL
    FOR NO KEY UPDATE OF l SKIP LOCKED
), asked AS MATERIALIZED (
    SELECT w.* FROM wanted AS w
    WHERE w.token IS NULL OR w.id IN (SELECT conversation FROM locked)
        OR NOT EXISTS (SELECT FROM convmem.convmem_lease AS l WHERE l.conversation = w.id)
),
-- end
seen AS (
    SELECT a.*, coalesce(c.epoch, '') AS epoch, coalesce(c.n, 0) AS n, coalesce(c.entry, '') AS entry, coalesce(c.turns, 0) AS visible,
        coalesce(c.start, 0) AS start, c.pinned, coalesce(c.expires <= now(), false) AS expired,
        CASE WHEN c.mark <> '' THEN c.deleted END AS deleted, nullif(c.ended, '{}') AS ended,
        coalesce(l.token, '') AS holder, l.taken, l.until
    FROM asked AS a
    LEFT JOIN convmem.convmem_conversation AS c ON c.id = a.id
    LEFT JOIN convmem.convmem_lease AS l ON l.conversation = a.id AND l.until > now()
-- if turn
), found AS (
    SELECT last.n, last.token, last.closing, NOT seen.expired AND EXISTS (
        SELECT FROM convmem.convmem_entry AS e WHERE e.conversation = seen.id AND e.turn = seen.turn AND e.visible AND e.n > seen.start
    ) AS visible
    FROM seen, LATERAL (
        SELECT e.n, e.token, e.closing FROM convmem.convmem_entry AS e
        WHERE e.conversation = seen.id AND e.turn = seen.turn ORDER BY e.n DESC LIMIT 1
    ) AS last
-- end
), held AS (
    INSERT INTO convmem.convmem_lease AS l (conversation, token, taken, until, epoch, n, entry, day)
    SELECT id, token, now(), now() + term, epoch, n, entry, (now() AT TIME ZONE 'UTC')::date
    FROM seen
    WHERE token IS NOT NULL AND holder IN ('', token)
-- if turn
        AND NOT EXISTS (SELECT FROM found WHERE closing)
-- end
    ON CONFLICT (conversation) DO UPDATE SET
        token = excluded.token, until = excluded.until, day = excluded.day,
        taken = CASE WHEN l.token = excluded.token AND l.until > now() THEN l.taken ELSE excluded.taken END,
        epoch = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.epoch ELSE l.epoch END,
        n = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.n ELSE l.n END,
        entry = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.entry ELSE l.entry END
    WHERE l.token = excluded.token OR l.until <= now()
    RETURNING l.conversation, l.taken, l.until, l.epoch, l.n, l.entry
-- if messages
), reached AS (
    SELECT max(n) FILTER (WHERE total >= messages) AS n, count(*) >= max(looked_at) AS short
    FROM (
        SELECT e.n, seen.messages, seen.looked_at, sum(e.count) OVER (ORDER BY e.n DESC ROWS UNBOUNDED PRECEDING) AS total
        FROM seen, LATERAL (
            SELECT n, count FROM convmem.convmem_entry
            WHERE conversation = seen.id AND visible AND n > seen.start AND n < coalesce(seen.before, seen.n + 1)
            ORDER BY n DESC LIMIT seen.looked_at
        ) AS e
    ) AS each
-- end
), edge AS MATERIALIZED (
    SELECT at, id, n, start, expired, pinned,
    -- if before
        before,
    -- end
        CASE WHEN expired OR turns = 0 THEN n ELSE greatest(
        start,
-- if messages
        (SELECT e.n - 1 FROM convmem.convmem_entry AS e
        WHERE e.conversation = seen.id AND e.visible AND e.opens AND e.n > seen.start AND e.n <= (SELECT n FROM reached)
        ORDER BY e.n DESC LIMIT 1),
-- end
        CASE WHEN seen.turns IS NOT NULL THEN (
            SELECT e.n - 1 FROM convmem.convmem_entry AS e
            WHERE e.conversation = seen.id AND e.visible AND e.opens AND e.n > seen.start
-- if before
                AND e.n < seen.before
-- end
            ORDER BY e.n DESC OFFSET seen.turns - 1 LIMIT 1
        ) END
    ) END AS low
    FROM seen
)
SELECT seen.at, ROW(
        seen.epoch, seen.n, seen.entry, seen.visible, seen.start, seen.pinned, seen.expired, seen.deleted, seen.ended::text,
        seen.holder, seen.taken, seen.until, now(),
        held.taken, held.until, (held.epoch, held.n, held.entry) IS NOT DISTINCT FROM (seen.epoch, seen.n, seen.entry)
-- if messages
        , (SELECT n IS NULL AND short FROM reached)
-- end
-- if turn
        , found.n, found.token, found.closing, found.visible
-- end
    ) AS log,
    NULL::bigint AS n, NULL::timestamptz AS stored, NULL::integer AS count, NULL::integer AS turns, NULL::bigint AS start,
    NULL::integer AS format, NULL::boolean AS closing, NULL::text AS entry, NULL::text AS turn, NULL::text AS token,
    NULL::text AS key_id, NULL::bigint[] AS pinned, NULL::bigint[] AS hides, NULL::bytea AS body
FROM seen LEFT JOIN held ON held.conversation = seen.id
-- if turn
LEFT JOIN found ON true
-- end
UNION ALL
SELECT edge.at, NULL, e.n, e.stored, e.count, e.turns, e.start, e.format, e.closing, e.entry, e.turn, e.token, e.key_id, e.pinned, e.hides, e.body
FROM edge, convmem.convmem_entry AS e
WHERE e.conversation = edge.id AND e.visible AND e.n > edge.low
-- if before
    AND e.n < edge.before
-- end
UNION ALL
SELECT edge.at, NULL, e.n, e.stored, e.count, e.turns, e.start, e.format, e.closing, e.entry, e.turn, e.token, e.key_id, e.pinned, e.hides, e.body
FROM edge, convmem.convmem_entry AS e
WHERE e.conversation = edge.id AND e.visible AND e.n = ANY (edge.pinned) AND e.n > edge.start AND e.n <= edge.low AND NOT edge.expired
-- if before
    AND e.n < edge.before
-- end

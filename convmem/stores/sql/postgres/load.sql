-- A window, and with a token the lease.
--
-- Each row is one value: a position and the packed entry at it, those of the window and those that are pinned before it; in front of all
-- positions what postgres_layout.py unpacks as the head, behind them the facts of the turn that is looked up. In no order, but the
-- values sort in this one.
-- Where the window begins is told by the entries that open a turn. It may begin too early, when an edit hid such an entry, never too late.
WITH
-- turns: how many, null is all of them; token, term: of the lease to take, null is none; turn: the one to look up; messages: how
-- many; looked_at: how many entries are looked at to find as many messages; before: the position where the window ends
-- if one
asked AS NOT MATERIALIZED (
    SELECT NULL::integer AS at, $1::uuid AS id, $2::integer AS turns, $3::bytea AS token, $4::float8 * interval '1 second' AS term
    -- if more
        , $5::bytea AS turn, $6::bigint AS messages, $7::bigint AS looked_at, $8::integer AS before
    -- end
    -- if one
),
-- end
-- if many
wanted AS MATERIALIZED (
    SELECT at::integer, id, turns, token, term * interval '1 second' AS term
    FROM unnest($1::uuid[], $2::integer[], $3::bytea[], $4::float8[]) WITH ORDINALITY AS w (id, turns, token, term, at)
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
    SELECT last.n, last.facts, NOT seen.expired AND EXISTS (
        SELECT FROM convmem.convmem_entry AS e
        WHERE substr(e.facts, 9, 7) = substr(seen.turn, 1, 7) AND substr(e.facts, 9, 16) = seen.turn
            AND e.conversation = seen.id AND e.n > seen.start
    ) AS visible
    FROM seen, LATERAL (
        SELECT abs(e.n) AS n, e.facts FROM convmem.convmem_entry AS e
        WHERE substr(e.facts, 9, 7) = substr(seen.turn, 1, 7) AND substr(e.facts, 9, 16) = seen.turn
            AND e.conversation = seen.id ORDER BY abs(e.n) DESC LIMIT 1
    ) AS last
-- end
), held AS (
    INSERT INTO convmem.convmem_lease AS l (conversation, token, taken, until, epoch, n, entry, day)
    SELECT id, token, now(), now() + term, epoch, n, entry, (now() AT TIME ZONE 'UTC')::date
    FROM seen
    WHERE token IS NOT NULL AND holder IN ('', token)
-- if turn
        AND NOT EXISTS (SELECT FROM found WHERE get_byte(facts, 7) & 4 <> 0) -- it is closed
-- end
-- if many
    ORDER BY id -- of two statements that make the same rows in different orders each would wait for the other
-- end
    ON CONFLICT (conversation) DO UPDATE SET
        token = excluded.token, until = excluded.until, day = excluded.day,
        taken = CASE WHEN l.token = excluded.token AND l.until > now() THEN l.taken ELSE excluded.taken END,
        epoch = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.epoch ELSE l.epoch END,
        n = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.n ELSE l.n END,
        entry = CASE WHEN l.token = excluded.token AND l.until > now() THEN excluded.entry ELSE l.entry END
    WHERE l.token = excluded.token OR l.until <= now()
    RETURNING l.conversation, l.epoch, l.n, l.entry
-- if messages
), reached AS (
    SELECT max(n) FILTER (WHERE total >= messages) AS n, count(*) >= max(looked_at) AS short
    FROM (
        SELECT e.n, seen.messages, seen.looked_at, sum(e.count) OVER (ORDER BY e.n DESC ROWS UNBOUNDED PRECEDING) AS total
        FROM seen, LATERAL (
            SELECT n, CASE WHEN get_byte(facts, at) < 128 THEN get_byte(facts, at) -- a number in seven bits a byte; of three, the lowest two
                ELSE get_byte(facts, at) - 128 + (get_byte(facts, at + 1) & 127) * 128 END AS count
            FROM convmem.convmem_entry, LATERAL (SELECT CASE get_byte(facts, 7) & 32 WHEN 0 THEN 56 ELSE 40 END AS at) AS place
            WHERE conversation = seen.id AND n > seen.start AND n < coalesce(seen.before, seen.n + 1)
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
        WHERE e.conversation = seen.id AND e.opens AND e.n > seen.start AND e.n <= (SELECT n FROM reached)
        ORDER BY e.n DESC LIMIT 1),
-- end
        CASE WHEN seen.turns IS NOT NULL THEN (
            SELECT e.n - 1 FROM convmem.convmem_entry AS e
            WHERE e.conversation = seen.id AND e.opens AND e.n > seen.start
-- if before
                AND e.n < seen.before
-- end
            ORDER BY e.n DESC OFFSET seen.turns - 1 LIMIT 1
        ) END
    ) END AS low
    FROM seen
)
SELECT
    '\x00000000'::bytea || int2send((
        seen.expired::integer + (held.conversation IS NOT NULL)::integer * 2
        + ((held.epoch, held.n, held.entry) IS NOT DISTINCT FROM (seen.epoch, seen.n, seen.entry))::integer * 4
        + (seen.holder <> '')::integer * 8
-- if messages
        + coalesce((SELECT n IS NULL AND short FROM reached), false)::integer * 16
-- end
    )::smallint) || int4send(seen.n) || int4send(seen.visible) || int4send(seen.start)
    || int4send((SELECT low FROM edge WHERE edge.id = seen.id)::integer)
    || coalesce(nullif(seen.epoch, ''), '\x00') || coalesce(nullif(seen.entry, ''), '\x00')
    || CASE WHEN seen.holder <> '' THEN
        seen.holder || timestamptz_send(now()) || timestamptz_send(seen.taken) || timestamptz_send(seen.until)
    ELSE '' END
    || CASE WHEN seen.pinned IS NOT NULL OR seen.deleted IS NOT NULL OR seen.ended IS NOT NULL THEN convert_to(
        json_build_array(seen.pinned, (extract(epoch FROM seen.deleted) * 1000000)::bigint, seen.ended)::text, 'UTF8'
    ) ELSE '' END AS value
-- if many
    , seen.at
-- end
FROM seen LEFT JOIN held ON held.conversation = seen.id
-- if turn
UNION ALL
SELECT '\xffffffff'::bytea || int4send(found.n::integer) || boolsend(found.visible) || found.facts FROM found
-- end
UNION ALL
SELECT int4send(e.n::integer) || e.facts || e.body
-- if many
    , edge.at
-- end
FROM edge, convmem.convmem_entry AS e
WHERE e.conversation = edge.id AND e.n > edge.low AND e.n <= edge.n -- both bounds: the planner then expects few rows, not a third of all
-- if before
    AND e.n < edge.before
-- end
UNION ALL
SELECT int4send(e.n::integer) || e.facts || e.body
-- if many
    , edge.at
-- end
FROM edge, convmem.convmem_entry AS e
WHERE e.conversation = edge.id AND e.n = ANY (edge.pinned) AND e.n > edge.start AND e.n <= edge.low AND NOT edge.expired
-- if before
    AND e.n < edge.before
-- end

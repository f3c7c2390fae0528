-- An append as most are, under a lease: behind the head as it stands (next), or where no conversation ever was (first), and
-- nobody else has tried this turn. It is stored then, and there is a row; without one nothing was, and append.sql tells why.
--
-- Each write is made from the row the write before it returned, as there; the facts of an entry are as there, too.
WITH
-- if one
asked AS NOT MATERIALIZED (
    SELECT NULL::integer AS at, $1::uuid AS id, $2::bytea AS after_epoch, $3::integer AS after_n, $4::bytea AS after_id,
        $5::bytea AS entry, $6::bytea AS token, $7::integer AS turns, $8::integer AS start, $9::text AS pinned,
        $10::bytea AS facts, $11::bytea AS body, $12::interval AS ttl, $13::boolean AS release
    -- end
    -- if one first
        , $14::text AS tenant, $15::text AS owner, $16::text AS session, $17::bytea AS epoch
    -- end
    -- if one
),
-- end
-- if many
wanted AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::uuid[], $2::bytea[], $3::integer[], $4::bytea[], $5::bytea[], $6::bytea[], $7::integer[], $8::integer[], $9::text[],
        $10::bytea[], $11::bytea[], $12::interval[], $13::boolean[]
    -- end
    -- if many first
        , $14::text[], $15::text[], $16::text[], $17::bytea[]
    -- end
    -- if many
    ) WITH ORDINALITY AS w (
        id, after_epoch, after_n, after_id, entry, token, turns, start, pinned, facts, body, ttl, release,
    -- end
    -- if many first
        tenant, owner, session, epoch,
    -- end
    -- if many
        at
    )
), locked AS MATERIALIZED ( -- nobody waits for a row that somebody else has: whom it concerns asks again, alone
    SELECT l.conversation FROM wanted AS w JOIN convmem.convmem_lease AS l ON l.conversation = w.id AND l.token = w.token
    FOR NO KEY UPDATE OF l SKIP LOCKED
), asked AS MATERIALIZED (
    SELECT w.* FROM wanted AS w JOIN locked ON locked.conversation = w.id
),
-- end
leased AS (
    UPDATE convmem.convmem_lease AS l SET
        -- if next
        epoch = a.after_epoch,
        -- end
        -- if first
        epoch = a.epoch,
        -- end
        n = a.after_n + 1, entry = a.entry, day = (now() AT TIME ZONE 'UTC')::date,
        token = CASE WHEN a.release THEN '' ELSE l.token END,
        until = CASE WHEN a.release THEN '-infinity' ELSE l.until END
    FROM asked AS a
    -- if next
    JOIN convmem.convmem_conversation AS c ON c.id = a.id
    -- end
    , LATERAL (
        SELECT bool_and(substr(e.facts, 25, 16) = substr(a.facts, 18, 16)) AS ours FROM convmem.convmem_entry AS e
        WHERE substr(e.facts, 9, 7) = substr(a.facts, 2, 7) AND substr(e.facts, 9, 16) = substr(a.facts, 2, 16)
            AND e.conversation IS NOT DISTINCT FROM a.id
    ) AS earlier
    WHERE l.conversation = a.id AND l.token = a.token AND earlier.ours IS NOT FALSE
        -- if next
        AND c.epoch = a.after_epoch AND c.n = a.after_n AND c.entry = a.after_id AND (c.expires > now()) IS NOT FALSE
        -- end
        -- if first
        AND NOT EXISTS (SELECT FROM convmem.convmem_conversation AS c WHERE c.id = a.id)
        -- end
    RETURNING l.conversation, earlier.ours
), placed AS (
    -- if next
    UPDATE convmem.convmem_conversation AS c SET
        n = a.after_n + 1, entry = a.entry, turns = a.turns, start = a.start, pinned = a.pinned::integer[],
        updated = greatest(now(), c.updated), day = (greatest(now(), c.updated) AT TIME ZONE 'UTC')::date, expires = now() + a.ttl
    FROM asked AS a, leased
    WHERE c.id = a.id AND c.id = leased.conversation AND c.epoch = a.after_epoch AND c.n = a.after_n AND c.entry = a.after_id
    RETURNING c.id, leased.ours
    -- end
    -- if first
    INSERT INTO convmem.convmem_conversation
        (id, tenant, owner, session, epoch, n, entry, turns, start, pinned, created, updated, day, expires)
    SELECT a.id, a.tenant, a.owner, a.session, a.epoch, 1, a.entry, a.turns, a.start, a.pinned::integer[],
        now(), now(), (now() AT TIME ZONE 'UTC')::date, now() + a.ttl
    FROM asked AS a, leased
    WHERE a.id = leased.conversation
    ON CONFLICT (id) DO NOTHING
    RETURNING id, NULL::boolean AS ours
    -- end
)
-- if many
, written AS (
-- end
INSERT INTO convmem.convmem_entry (conversation, n, opens, facts, body)
SELECT a.id, CASE WHEN get_byte(a.facts, 0) & 3 = 0 THEN a.after_n + 1 ELSE -1 - a.after_n END, placed.ours IS NULL,
    substr(int8send((extract(epoch FROM now()) * 1000000)::bigint), 2) || a.facts, a.body
FROM asked AS a, placed
WHERE a.id = placed.id
-- if one
RETURNING true AS stored
-- end
-- if many
RETURNING conversation
) SELECT asked.at::integer FROM written JOIN asked ON asked.id = written.conversation
-- end

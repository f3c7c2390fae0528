-- An append as most are, under a lease: behind the head as it stands (next), or where no conversation ever was (first), and
-- nobody else has tried this turn. It is stored then, and there is a row; without one nothing was, and append.sql tells why.
--
-- Each write is made from the row the write before it returned, as there.
WITH
-- if one
asked AS NOT MATERIALIZED (
    SELECT NULL::integer AS at, $1::uuid AS id, $2::text AS tenant, $3::text AS owner, $4::text AS session,
        $5::text AS after_epoch, $6::bigint AS after_n, $7::text AS after_id,
        $8::text AS entry, $9::text AS turn, $10::text AS token, $11::text AS epoch, $12::text AS kind, $13::boolean AS closing,
        $14::integer AS count, $15::integer AS turns, $16::bigint AS start, $17::text AS pinned, $18::text AS hides,
        $19::integer AS format, $20::text AS key_id, $21::bytea AS body, $22::interval AS ttl, $23::boolean AS release
),
-- end
-- if many
wanted AS MATERIALIZED (
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[],
        $11::text[], $12::text[], $13::boolean[], $14::integer[], $15::integer[], $16::bigint[], $17::text[], $18::text[],
        $19::integer[], $20::text[], $21::bytea[], $22::interval[], $23::boolean[]
    ) WITH ORDINALITY AS w (
        id, tenant, owner, session, after_epoch, after_n, after_id, entry, turn, token,
        epoch, kind, closing, count, turns, start, pinned, hides, format, key_id, body, ttl, release, at
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
        epoch = a.epoch, n = a.after_n + 1, entry = a.entry, day = (now() AT TIME ZONE 'UTC')::date,
        token = CASE WHEN a.release THEN '' ELSE l.token END,
        until = CASE WHEN a.release THEN '-infinity' ELSE l.until END
    FROM asked AS a
    -- if next
    JOIN convmem.convmem_conversation AS c ON c.id = a.id
    -- end
    , LATERAL (
        SELECT bool_and(e.token = a.token) AS ours FROM convmem.convmem_entry AS e WHERE e.conversation = a.id AND e.turn = a.turn
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
        n = a.after_n + 1, entry = a.entry, turns = a.turns, start = a.start, pinned = a.pinned::bigint[],
        updated = greatest(now(), c.updated), day = (greatest(now(), c.updated) AT TIME ZONE 'UTC')::date, expires = now() + a.ttl
    FROM asked AS a, leased
    WHERE c.id = a.id AND c.id = leased.conversation AND c.epoch = a.after_epoch AND c.n = a.after_n AND c.entry = a.after_id
    RETURNING c.id, leased.ours
    -- end
    -- if first
    INSERT INTO convmem.convmem_conversation
        (id, tenant, owner, session, epoch, n, entry, turns, start, pinned, created, updated, day, expires)
    SELECT a.id, a.tenant, a.owner, a.session, a.epoch, 1, a.entry, a.turns, a.start, a.pinned::bigint[],
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
INSERT INTO convmem.convmem_entry
    (conversation, n, start, stored, count, turns, format, closing, visible, opens, kind, entry, turn, token, key_id, pinned, hides, body)
SELECT a.id, a.after_n + 1, a.start, now(), a.count, a.turns, a.format, a.closing, a.kind = 'turn', placed.ours IS NULL, a.kind,
    a.entry, a.turn, a.token, a.key_id, a.pinned::bigint[], a.hides::bigint[], a.body
FROM asked AS a, placed
WHERE a.id = placed.id
RETURNING conversation
-- if many
) SELECT asked.at::integer, written.conversation FROM written JOIN asked ON asked.id = written.conversation
-- end

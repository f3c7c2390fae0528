-- $1 conversation  $2 tenant  $3 owner  $4 session                     the address
-- $5 epoch  $6 n  $7 id                                                the head to append after
-- $8 id  $9 turn  $10 token  $11 epoch  $12 kind  $13 closing  $14 count  $15 turns  $16 start  $17 pinned  $18 hides
-- $19 format  $20 key id  $21 body                                     the entry
-- $22 ttl  $23 release
--
-- Everything is decided on what this statement sees. Each write is made from the row the write before it returned: the lease
-- row first, which every writer locks and which says who may write now; then the conversation, if it is still as seen; then
-- the entry. When one of them had moved on, nothing is stored, the outcome is "again", and the next try sees what happened.
WITH seen AS (
    SELECT c.id IS NOT NULL AS present, coalesce(c.epoch, '') AS epoch, coalesce(c.n, 0) AS n, coalesce(c.entry, '') AS entry,
        coalesce(c.turns, 0) AS turns, coalesce(c.start, 0) AS start, c.pinned, coalesce(c.mark, '') AS mark,
        coalesce(c.ended, '{}') AS ended, coalesce(c.expires <= now(), false) AS expired, c.created,
        greatest(now(), c.updated) AS updated, coalesce(l.token, '') AS holder
    FROM (SELECT) AS one
    LEFT JOIN convmem.convmem_conversation AS c ON c.id = $1::uuid
    LEFT JOIN convmem.convmem_lease AS l ON l.conversation = $1::uuid AND l.until > now()
), place AS (
    SELECT
        (SELECT entry FROM convmem.convmem_entry WHERE conversation = $1::uuid AND n = $6::bigint) AS there,
        (SELECT entry FROM convmem.convmem_entry WHERE conversation = $1::uuid AND n = $6::bigint + 1) AS next
), earlier AS (
    SELECT n, token FROM convmem.convmem_entry WHERE conversation = $1::uuid AND turn = $9::text
), decided AS (
    SELECT seen.*, CASE
        WHEN $5::text <> '' AND seen.ended ? $5::text THEN 'gone'
        WHEN $5::text = '' AND seen.mark NOT IN ('', $7::text) THEN 'gone'
        WHEN $5::text NOT IN ('', seen.epoch) THEN 'gap'
        WHEN place.next = $8::text THEN 'duplicate'
        WHEN seen.n < $6::bigint AND seen.epoch = $5::text THEN 'gap'
        WHEN $6::bigint > 0 AND place.there IS NULL AND $6::bigint >= seen.start THEN 'gap'
        WHEN $6::bigint > 0 AND place.there <> $7::text THEN 'gap'
        WHEN seen.holder NOT IN ('', $10::text) THEN 'fenced'
        WHEN seen.n > $6::bigint THEN 'conflict'
        ELSE 'stored'
    END AS outcome
    FROM seen, place
), leased AS (
    INSERT INTO convmem.convmem_lease AS l (conversation, token, taken, until, epoch, n, entry, day)
    SELECT $1::uuid, '', now(), '-infinity', $11::text, $6::bigint + 1, $8::text, (now() AT TIME ZONE 'UTC')::date
    FROM decided WHERE outcome = 'stored'
    ON CONFLICT (conversation) DO UPDATE SET
        epoch = excluded.epoch, n = excluded.n, entry = excluded.entry, day = excluded.day,
        token = CASE WHEN $23::boolean AND l.token = $10::text THEN '' ELSE l.token END,
        until = CASE WHEN $23::boolean AND l.token = $10::text THEN '-infinity' ELSE l.until END
    WHERE l.token = $10::text OR l.until <= now()
    RETURNING l.conversation
), released AS (
    UPDATE convmem.convmem_lease AS l SET token = '', until = '-infinity'
    FROM decided
    WHERE l.conversation = $1::uuid AND l.token = $10::text AND decided.outcome = 'duplicate' AND $23::boolean
), moved AS (
    UPDATE convmem.convmem_conversation AS c SET
        epoch = $11::text, n = $6::bigint + 1, entry = $8::text, turns = $15::integer, start = $16::bigint, pinned = $17::bigint[],
        created = CASE WHEN c.epoch = '' THEN now() ELSE c.created END,
        updated = greatest(now(), c.updated), day = (greatest(now(), c.updated) AT TIME ZONE 'UTC')::date,
        expires = now() + $22::interval
    FROM decided, leased
    WHERE c.id = leased.conversation AND (c.epoch, c.n, c.entry, c.mark) = (decided.epoch, decided.n, decided.entry, decided.mark)
    RETURNING c.id, c.updated
), made AS (
    INSERT INTO convmem.convmem_conversation
        (id, tenant, owner, session, epoch, n, entry, turns, start, pinned, created, updated, day, expires)
    SELECT leased.conversation, $2::text, $3::text, $4::text, $11::text, $6::bigint + 1, $8::text, $15::integer, $16::bigint,
        $17::bigint[], now(), now(), (now() AT TIME ZONE 'UTC')::date, now() + $22::interval
    FROM decided, leased WHERE NOT decided.present
    ON CONFLICT (id) DO NOTHING
    RETURNING id, updated
), written AS (
    INSERT INTO convmem.convmem_entry
        (conversation, n, start, stored, count, turns, format, closing, visible, opens, kind, entry, turn, token, key_id, pinned, hides, body)
    SELECT id, $6::bigint + 1, $16::bigint, now(), $14::integer, $15::integer, $19::integer, $13::boolean, $12::text = 'turn',
        NOT EXISTS (SELECT FROM earlier WHERE token = $10::text), $12::text, $8::text, $9::text, $10::text, $20::text, $17::bigint[], $18::bigint[], $21::bytea
    FROM (SELECT id FROM moved UNION ALL SELECT id FROM made) AS address
    RETURNING n
), removed AS (
    DELETE FROM convmem.convmem_entry AS e USING moved, decided
    WHERE e.conversation = moved.id AND decided.expired AND e.n < CASE WHEN $16::bigint > decided.start THEN $16::bigint ELSE 0 END
), hidden AS (
    UPDATE convmem.convmem_entry AS e SET visible = false
    FROM moved, decided, (
        SELECT n FROM earlier WHERE token <> $10::text UNION SELECT unnest($18::bigint[])
    ) AS target
    WHERE e.conversation = moved.id AND e.n = target.n AND e.visible
        AND NOT (decided.expired AND e.n < CASE WHEN $16::bigint > decided.start THEN $16::bigint ELSE 0 END)
)
SELECT CASE WHEN outcome = 'stored' AND NOT EXISTS (SELECT FROM written) THEN 'again' ELSE outcome END AS outcome,
    epoch, n, entry, turns, start, pinned
FROM decided

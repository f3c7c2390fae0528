-- $1 conversation
-- $2 epoch  $3 n  $4 id                                                the head to append after
-- $5 id  $6 token  $7 turns  $8 start  $9 pinned  $10 facts  $11 body  the entry
-- $12 ttl  $13 release
-- $14 tenant  $15 owner  $16 session  $17 epoch                        the address, and the entry's epoch
-- $18 the 16 bytes for the id of that head  $19 hides
--
-- The facts that come here are those of an entry without when it was stored: flags, of which the lowest two are 0 for a turn, then
-- 16 bytes each for turn, token and id, the id only where it is not the turn's (flag 32).
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
        (SELECT substr(facts, CASE get_byte(facts, 7) & 32 WHEN 0 THEN 41 ELSE 9 END, 16) FROM convmem.convmem_entry
         WHERE conversation = $1::uuid AND n IN ($3::integer, -$3::integer)) AS there,
        (SELECT substr(facts, CASE get_byte(facts, 7) & 32 WHEN 0 THEN 41 ELSE 9 END, 16) FROM convmem.convmem_entry
         WHERE conversation = $1::uuid AND n IN ($3::integer + 1, -1 - $3::integer)) AS next
), earlier AS (
    SELECT n, substr(facts, 25, 16) = substr($10::bytea, 18, 16) AS ours FROM convmem.convmem_entry
    WHERE substr(facts, 9, 7) = substr($10::bytea, 2, 7) AND substr(facts, 9, 16) = substr($10::bytea, 2, 16)
        AND conversation IS NOT DISTINCT FROM $1::uuid
), decided AS (
    SELECT seen.*, CASE
        WHEN $2::bytea <> '' AND seen.ended ? encode($2::bytea, 'hex') THEN 'gone'
        WHEN $2::bytea = '' AND seen.mark NOT IN ('', $4::bytea) THEN 'gone'
        WHEN $2::bytea NOT IN ('', seen.epoch) THEN 'gap'
        WHEN place.next = substr($10::bytea, CASE get_byte($10::bytea, 0) & 32 WHEN 0 THEN 34 ELSE 2 END, 16) THEN 'duplicate'
        WHEN seen.n < $3::integer AND seen.epoch = $2::bytea THEN 'gap'
        WHEN $3::integer > 0 AND place.there IS NULL AND $3::integer >= seen.start THEN 'gap'
        WHEN $3::integer > 0 AND place.there <> $18::bytea THEN 'gap'
        WHEN seen.holder NOT IN ('', $6::bytea) THEN 'fenced'
        WHEN seen.n > $3::integer THEN 'conflict'
        ELSE 'stored'
    END AS outcome
    FROM seen, place
), leased AS (
    INSERT INTO convmem.convmem_lease AS l (conversation, token, taken, until, epoch, n, entry, day)
    SELECT $1::uuid, '', now(), '-infinity', $17::bytea, $3::integer + 1, $5::bytea, (now() AT TIME ZONE 'UTC')::date
    FROM decided WHERE outcome = 'stored'
    ON CONFLICT (conversation) DO UPDATE SET
        epoch = excluded.epoch, n = excluded.n, entry = excluded.entry, day = excluded.day,
        token = CASE WHEN $13::boolean AND l.token = $6::bytea THEN '' ELSE l.token END,
        until = CASE WHEN $13::boolean AND l.token = $6::bytea THEN '-infinity' ELSE l.until END
    WHERE l.token = $6::bytea OR l.until <= now()
    RETURNING l.conversation
), released AS (
    UPDATE convmem.convmem_lease AS l SET token = '', until = '-infinity'
    FROM decided
    WHERE l.conversation = $1::uuid AND l.token = $6::bytea AND decided.outcome = 'duplicate' AND $13::boolean
), moved AS (
    UPDATE convmem.convmem_conversation AS c SET
        epoch = $17::bytea, n = $3::integer + 1, entry = $5::bytea, turns = $7::integer, start = $8::integer, pinned = $9::text::integer[],
        created = CASE WHEN c.epoch = '' THEN now() ELSE c.created END,
        updated = greatest(now(), c.updated), day = (greatest(now(), c.updated) AT TIME ZONE 'UTC')::date,
        expires = now() + $12::interval
    FROM decided, leased
    WHERE c.id = leased.conversation AND (c.epoch, c.n, c.entry, c.mark) = (decided.epoch, decided.n, decided.entry, decided.mark)
    RETURNING c.id, c.updated
), made AS (
    INSERT INTO convmem.convmem_conversation
        (id, tenant, owner, session, epoch, n, entry, turns, start, pinned, created, updated, day, expires)
    SELECT leased.conversation, $14::text, $15::text, $16::text, $17::bytea, $3::integer + 1, $5::bytea, $7::integer, $8::integer,
        $9::text::integer[], now(), now(), (now() AT TIME ZONE 'UTC')::date, now() + $12::interval
    FROM decided, leased WHERE NOT decided.present
    ON CONFLICT (id) DO NOTHING
    RETURNING id, updated
), written AS (
    INSERT INTO convmem.convmem_entry (conversation, n, opens, facts, body)
    SELECT id, CASE WHEN get_byte($10::bytea, 0) & 3 = 0 THEN $3::integer + 1 ELSE -1 - $3::integer END,
        NOT EXISTS (SELECT FROM earlier WHERE ours),
        substr(int8send((extract(epoch FROM now()) * 1000000)::bigint), 2) || $10::bytea, $11::bytea
    FROM (SELECT id FROM moved UNION ALL SELECT id FROM made) AS address
    RETURNING n
), removed AS (
    DELETE FROM convmem.convmem_entry AS e USING moved, decided
    WHERE e.conversation = moved.id AND decided.expired AND abs(e.n) < CASE WHEN $8::integer > decided.start THEN $8::integer ELSE 0 END
), hidden AS (
    UPDATE convmem.convmem_entry AS e SET n = -e.n
    FROM moved, decided, (
        SELECT n FROM earlier WHERE NOT ours AND n > 0 UNION SELECT unnest($19::integer[])
    ) AS target
    WHERE e.conversation = moved.id AND e.n = target.n
        AND NOT (decided.expired AND e.n < CASE WHEN $8::integer > decided.start THEN $8::integer ELSE 0 END)
)
SELECT CASE WHEN outcome = 'stored' AND NOT EXISTS (SELECT FROM written) THEN 'again' ELSE outcome END AS outcome,
    epoch, n, entry, turns, start, pinned
FROM decided

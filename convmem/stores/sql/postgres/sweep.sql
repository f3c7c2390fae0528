-- $1 how long a tombstone is kept  $2 how many addresses are looked at in each table: no batch takes longer
--
-- Tombstones past their life, and leases of days gone by, along their indexes, as a delete does it beside. Those another statement
-- has locked are left to the next batch.
WITH forgotten AS (
    DELETE FROM convmem.convmem_conversation
    WHERE epoch = '' AND id = ANY(ARRAY(
        SELECT id FROM convmem.convmem_conversation
        WHERE epoch = '' AND deleted < now() - $1::interval
        ORDER BY deleted LIMIT $2::bigint FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
), cleared AS (
    DELETE FROM convmem.convmem_lease
    WHERE conversation = ANY(ARRAY(
        SELECT conversation FROM convmem.convmem_lease
        WHERE day < (now() AT TIME ZONE 'UTC')::date - 1 AND until <= now()
        ORDER BY day LIMIT $2::bigint FOR UPDATE SKIP LOCKED
    ))
    RETURNING conversation
)
SELECT (SELECT count(*) FROM forgotten) + (SELECT count(*) FROM cleared) AS removed

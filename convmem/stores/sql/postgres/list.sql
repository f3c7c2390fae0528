-- $1 tenant  $2 owner  $3 updated and $4 session of the last one on the page before; null: the first page
-- $5 only those last written before; null: all  $6 how many
--
-- The index gives the days, newest first; only within a day is there something to sort.
SELECT tenant, owner, session, turns, created, updated, epoch, n, entry, false AS expired
FROM convmem.convmem_conversation
WHERE tenant = $1::text AND owner = $2::text AND epoch <> '' AND (expires IS NULL OR expires > now())
    AND day <= (least($3::timestamptz, $5::timestamptz, 'infinity') AT TIME ZONE 'UTC')::date
    AND (updated, session) < (coalesce($3::timestamptz, 'infinity'), $4::text)
    AND updated < coalesce($5::timestamptz, 'infinity')
ORDER BY day DESC, updated DESC, session DESC
LIMIT $6::bigint

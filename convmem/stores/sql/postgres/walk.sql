-- $1 the id after which to go on  $2 tenant; null: every tenant  $3 only those last written before; null: all
-- $4 how many addresses are looked at: no page takes longer, however few conversations are in it
SELECT id, tenant, owner, session, turns, created, updated, epoch, n, entry, coalesce(expires <= now(), false) AS expired,
    epoch <> '' AND owner NOT LIKE 'convmem:%' AND tenant = coalesce($2::text, tenant)
        AND updated < coalesce($3::timestamptz, 'infinity') AS wanted
FROM convmem.convmem_conversation
WHERE id > $1::uuid
ORDER BY id
LIMIT $4::bigint

-- $1 tenant  $2 owner  $3 session of the last address the page before looked at; empty: none
-- $4 tenant to stay in; null: every tenant  $5 only those last written before; null: all
-- $6 how many addresses are looked at: no page takes longer, however few conversations are in it
--
-- By address, along the index of the owners: what is written meanwhile keeps its place. The sessions of one owner are sorted.
SELECT tenant, owner, session, turns, created, updated, epoch, n, entry, coalesce(expires <= now(), false) AS expired,
    owner NOT LIKE 'convmem:%' AND updated < coalesce($5::timestamptz, 'infinity') AS wanted
FROM (
    SELECT * FROM convmem.convmem_conversation
    WHERE epoch <> '' AND (tenant, owner) >= ($1::text, $2::text) AND (tenant, owner, session) > ($1::text, $2::text, $3::text)
        AND tenant >= coalesce($4::text, '') AND tenant <= coalesce($4::text, chr(127))
    ORDER BY tenant, owner, session
    LIMIT $6::bigint
) AS looked_at
ORDER BY tenant, owner, session

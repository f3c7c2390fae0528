-- A write that is flushed as an append is, and what the server says of itself.
WITH written AS (
    UPDATE convmem.convmem_migration SET applied = applied WHERE number = 1 RETURNING number
)
SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes, current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('synchronous_standby_names') AS standbys, current_database() AS database, (SELECT number FROM written) AS written

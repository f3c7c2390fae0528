-- A job goes through what was not written for long, and drops old tombstones and the leases of the dead, without a scan.
-- A lease where there was never a conversation has 0 in "deleted". The index that goes led through every young tombstone.

CREATE INDEX conversation_by_time ON conversation (updated, id) WHERE epoch <> '';
CREATE INDEX conversation_dead ON conversation (deleted, until) WHERE epoch = '';
DROP INDEX conversation_absent;

-- A job goes through what was not written for long, and drops old tombstones and the leases of the dead, without a scan.
-- A lease where there was never a conversation has 0 in "deleted".

CREATE INDEX conversation_by_hour ON conversation (hour) WHERE epoch <> '';
CREATE INDEX conversation_dead ON conversation (deleted, until) WHERE epoch = '';

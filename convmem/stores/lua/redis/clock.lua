-- Microseconds since 1970.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local GRACE_MS = 3600000  -- what expired stays in memory, for a turn that began before

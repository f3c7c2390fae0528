-- Cluster: put a session into its owner's index, which is in another slot than the conversation.
-- KEYS[1] the index; ARGV[1] the session id; ARGV[2] the TTL in milliseconds, 0 for none

-- include clock
-- include index
local ttl = tonumber(ARGV[2])
enlist(KEYS[1], ARGV[1], now, ttl > 0 and math.floor(now / 1000) + ttl + GRACE_MS or 0)
return 1

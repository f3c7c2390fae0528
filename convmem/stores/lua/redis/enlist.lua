-- Cluster: put a session into its owner's index, which is in another slot than the conversation.
-- KEYS[1] the index; ARGV[1] the session id; ARGV[2] the TTL in milliseconds, 0 for none

-- include clock
local index, session, updated, ttl, stays = KEYS[1], ARGV[1], now, tonumber(ARGV[2]), false
local until_ms = ttl > 0 and math.floor(now / 1000) + ttl + GRACE_MS or 0
-- include index
return 1

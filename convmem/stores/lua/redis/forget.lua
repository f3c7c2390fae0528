-- Take a session out of its owner's index, unless somebody has written it since its score was seen.
-- KEYS[1] the index; ARGV[1] the session id; ARGV[2] the score

if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0

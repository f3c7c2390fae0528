-- Put `session` into its owner's `index`, a sorted set of session ids by when they were last written. It lives as long as the
-- longest of them: `until_ms` says when that is for this one, 0 for never, and `stays` that the index has no TTL already.
local lives = stays and -1 or redis.call('PTTL', index)
redis.call('ZADD', index, 'GT', updated, session)
if until_ms == 0 then
  if lives >= 0 then redis.call('PERSIST', index) end
elseif lives == -2 or (lives >= 0 and math.floor(now / 1000) + lives < until_ms) then
  redis.call('PEXPIREAT', index, until_ms)
end

-- An owner's index: a sorted set of session ids by when they were last written. It lives as long as the longest of them.

local GRACE_MS = 3600000  -- what expired stays in memory, for a turn that began before

-- `lasting` says that it has no TTL.
local function enlist(index, session, score, until_ms, lasting)
  local lives = lasting and -1 or redis.call('PTTL', index)
  redis.call('ZADD', index, 'GT', score, session)
  if until_ms == 0 then
    if lives >= 0 then redis.call('PERSIST', index) end
  elseif lives == -2 or (lives >= 0 and math.floor(now / 1000) + lives < until_ms) then
    redis.call('PEXPIREAT', index, until_ms)
  end
end

-- A lease need not survive a crash or a failover, so taking it costs neither replication nor a flush. What is done quietly
-- touches only the field l, and the TTL of a row that holds nothing else: what a replica lacks of the log would be a loss.
local function quietly(...)
  if redis.set_repl then pcall(redis.set_repl, redis.REPL_NONE) end
  call(...)
  if redis.set_repl then pcall(redis.set_repl, redis.REPL_ALL) end
end

local function hold(token, term)
  if held ~= token then taken = now end
  held, till = token, now + term * 1000
  quietly('HSET', row, 'l', pack('>I7I7', taken, till) .. token)
  if not fields[1] and mark == '' then quietly('PEXPIRE', row, term) end
end

local function let_go(token)
  if held ~= token or token == '' then return end
  if fields[1] or mark ~= '' then return quietly('HSET', row, 'l', '') end
  quietly('HDEL', row, 'l')
end

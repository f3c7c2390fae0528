-- A lease need not survive a crash or a failover, so taking it costs neither replication nor a flush. What is done quietly
-- touches only the field l, and the TTL of a row that holds nothing else: what a replica lacks of the log would be a loss.
local function quietly(...)
  if redis.set_repl then pcall(redis.set_repl, redis.REPL_NONE) end
  call(...)
  if redis.set_repl then pcall(redis.set_repl, redis.REPL_ALL) end
end

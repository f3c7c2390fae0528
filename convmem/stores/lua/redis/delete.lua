-- End a life and leave a tombstone in the row: a new mark, and every epoch ended so far.
--
-- ARGV[1]  the mark
-- ARGV[2]  epoch, ARGV[3] n and ARGV[4] id of the head it must still have; ARGV[3] is empty when any will do
-- KEYS[3]  the owner's index and ARGV[5] the session id, where the index is in the same database

if ARGV[3] ~= '' and not same(ARGV[2], tonumber(ARGV[3]), ARGV[4]) then return 0 end
local existed = epoch ~= '' and (ARGV[3] ~= '' or not expired)
local oldest, lives = now - TOMBSTONE_MS * 1000, {}
for of, at in string.gmatch(ended, '([^\n\t]+)\t(%d+)') do
  if tonumber(at) > oldest then lives[#lives + 1] = of .. '\t' .. at .. '\n' end
end
if last_epoch ~= '' then lives[#lives + 1] = last_epoch .. string.format('\t%.0f\n', now) end
redis.call('UNLINK', row, log)
redis.call('HSET', row, 'm', string.format('%.0f ', now) .. ARGV[1])
if #lives > 0 then redis.call('HSET', row, 'x', '\n' .. table.concat(lives)) end
redis.call('PEXPIREAT', row, math.floor(now / 1000) + TOMBSTONE_MS)
if KEYS[3] then redis.call('ZREM', KEYS[3], ARGV[5]) end
return existed and 1 or 0

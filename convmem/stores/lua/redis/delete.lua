-- End a life and leave a tombstone in the row: a new mark, and every epoch ended so far.
--
-- ARGV[1]  the mark
-- ARGV[2]  n of the head it must still have, ARGV[3] its epoch, ARGV[4] its id; absent when any will do

-- include clock
-- include name
local fields = call('HMGET', KEYS[1], 'e', 'h', 'l')
-- include row
if ARGV[2] and (epoch ~= ARGV[3] or n ~= unpacked('>I4', ARGV[2]) or tip ~= ARGV[4]) then return 0 end
local existed = epoch ~= '' and (ARGV[2] or not expired)
local oldest, lives, at = now - TOMBSTONE_MS * 1000, '', 1
while at <= #ended do
  local begin, _, when = at
  _, at = name(ended, at)
  when, at = unpacked('>I7', ended, at)
  if when > oldest then lives = lives .. sub(ended, begin, at - 1) end
end
if last_epoch ~= '' then lives = lives .. last_epoch .. pack('>I7', now) end
call('UNLINK', row, log)
call('HSET', row, 'm', pack('>I7', now) .. ARGV[1], 'x', lives)
call('PEXPIREAT', row, math.floor(now / 1000) + TOMBSTONE_MS)
if index then call('ZREM', index, session) end
return existed and 1 or 0

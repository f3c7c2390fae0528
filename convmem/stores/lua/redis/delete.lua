-- End a life and leave a tombstone in the row: a new mark, and every epoch ended so far.
--
-- ARGV[1]  the mark
-- ARGV[2]  n, epoch and id of the head it must still have; absent when any will do
-- KEYS[3]  the owner's index, where it is in the same database

-- include clock
-- include names
-- include row
-- include head
if ARGV[2] then
  local at_n, at = unpacked('>I4', ARGV[2])
  local at_epoch, at_id
  at_epoch, at = name(ARGV[2], at)
  at_id = name(ARGV[2], at)
  if not same(at_epoch, at_n, at_id) then return 0 end
end
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
if KEYS[3] then call('ZREM', KEYS[3], string.match(row, '^.*/(.*)}$')) end
return existed and 1 or 0

-- Store an entry if the log ends where the caller saw it end. The outcome is decided in the order of stores/base.py.
--
-- ARGV[1]  closing, counts, release, confirm, begins, each 0 or 1; n of the head the caller saw, turns, start, the TTL in
--          milliseconds or 0. `confirm` makes a duplicate write something too, for WAIT counts the writes of its own connection
--          only; `begins` says that the caller saw no conversation.
-- ARGV[2]  the entry's epoch; ARGV[3] id of the head the caller saw
-- ARGV[4]  the entry; ARGV[5] pinned positions and ARGV[6] positions to hide, when there are any
--
-- Everything is read and checked before the first write, and the first write is one that a full server refuses: nothing is
-- ever half stored.

-- include clock
-- include name
-- include entry
local closing, counts, release, confirm, begins, after_n, new_turns, new_start, ttl = unpacked('>BBBBBI4I4I4I8', ARGV[1])
local after_epoch, after_id = begins == 1 and '' or ARGV[2], ARGV[3]
local turn, token, entry = names(ARGV[4], 1)
local field = field_of(turn)
local fields = call('HMGET', KEYS[1], 'e', 'h', 'l', field)
-- include row

local at = n + 1
local fresh, restart = epoch == '', false
local lasting = not fresh and expires == 0  -- no key of it has a TTL
local first, changed
if expired or epoch ~= after_epoch or n ~= after_n or tip ~= after_id or (held ~= '' and held ~= token) or counts == 0
  or (ARGV[6] or '') ~= '' or (fields[4] and not fresh) then
  -- include log
  -- include decide
end

call('RPUSH', log, pack('>I7', now) .. ARGV[4])
if fresh and length > 0 then call('LTRIM', log, -1, -1) end
if restart then
  base = math.max(emptied and n or base, math.min(new_start, at) - 1)
  call('LTRIM', log, base - at, -1)
end

if now > updated then updated = now end
expires = ttl > 0 and now + ttl * 1000 or 0
local new_head = pack(HEAD, mark ~= '' and 1 or 0, updated, expires, at, new_turns, new_start, base, veil, joined) .. entry .. (ARGV[5] or '')
local place = at * 2 + closing
if first then place = first .. ':' .. place end
local cleared = 1
if fresh or restart then
  cleared = call('UNLINK', row)  -- the lease goes with it, and is put back below
  call('HSET', row, 'e', fresh and pack('>I7', now) .. ARGV[2] or fields[1], 'h', new_head, field, place)
  if mark ~= '' then call('HSET', row, 'm', pack('>I7', deleted) .. mark, 'x', ended) end
elseif lease ~= '' and (release == 1 or held == '') then
  call('HSET', row, 'h', new_head, 'l', '', field, place)
else
  call('HSET', row, 'h', new_head, field, place)
end
if changed then
  for c, bits in pairs(changed) do call('HSET', row, 'v' .. c, bits) end
end

local until_ms = ttl > 0 and math.floor(now / 1000) + ttl + GRACE_MS or 0
if ttl > 0 then
  call('PEXPIREAT', log, until_ms)
  call('PEXPIREAT', row, mark ~= '' and math.max(until_ms, math.floor(deleted / 1000) + TOMBSTONE_MS) or until_ms)
elseif not lasting then
  -- A row that held only a lease has a TTL that was not replicated, and a replica or a file written meanwhile may have it
  -- although this server has no such row: PERSIST alone would do nothing here and so reach nobody.
  if cleared == 0 then call('PEXPIREAT', row, math.floor(now / 1000) + TOMBSTONE_MS) end
  call('PERSIST', row)
  if length > 0 then call('PERSIST', log) end
end
if index then
  local stays = lasting and ttl == 0
  -- include index
end
if (fresh or restart) and held ~= '' and release == 0 then
  -- include quietly
  quietly('HSET', row, 'l', lease)
end
return 0

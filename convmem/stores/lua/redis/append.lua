-- Store an entry if the log ends where the caller saw it end. The outcome is decided in the order of stores/base.py.
--
-- ARGV[1]  closing, counts, release, confirm, begins, each 0 or 1; n of the head the caller saw, turns, start, the TTL in
--          milliseconds or 0, the entry's epoch, id of that head. `confirm` makes a duplicate write something too, for WAIT
--          counts the writes of its own connection only; `begins` says that the caller saw no conversation.
-- ARGV[2]  the entry; ARGV[3] pinned positions and ARGV[4] positions to hide, when there are any
-- KEYS[3]  the owner's index, where it is in the same database
--
-- Everything is read and checked before the first write, and the first write is one that a full server refuses: nothing is
-- ever half stored.

-- include clock
-- include names
-- include row
-- include head
-- include index
local closing, counts, release, confirm, begins, after_n, new_turns, new_start, ttl, at_names = unpacked('>BBBBBI4I4I4I8', ARGV[1])
local its_epoch, at_id = name(ARGV[1], at_names)
local after_id = name(ARGV[1], at_id)
local after_epoch = begins == 1 and '' or its_epoch
local turn, token, entry = names(ARGV[2], 1)
local field = field_of(turn)

local at = n + 1
local fresh, restart = epoch == '', false
local lasting = not fresh and expires == 0  -- no key of it has a TTL
local first, changed
if expired or not same(after_epoch, after_n, after_id) or (held ~= '' and held ~= token) or counts == 0 or (ARGV[4] or '') ~= ''
  or (not fresh and call('HEXISTS', row, field) == 1) then
  -- include log
  -- include decide
end

call('RPUSH', log, pack('>I7', now) .. ARGV[2])
if fresh and length > 0 then call('LTRIM', log, -1, -1) end
if restart then
  base = math.max(emptied and n or base, math.min(new_start, at) - 1)
  call('LTRIM', log, base - at, -1)
end

local cleared, new = 1, {}
local function set(name, text) new[#new + 1] = name new[#new + 1] = text end
if fresh or restart then
  cleared = call('UNLINK', row)  -- the lease goes with it, and is put back below
  if fresh then epoch, begun = its_epoch, now end
  set('e', pack('>I7', begun) .. epoch)
end
updated = math.max(now, updated)
expires = ttl > 0 and now + ttl * 1000 or 0
set('h', pack(HEAD, mark ~= '' and 1 or 0, updated, expires, at, new_turns, new_start, base, veil, joined) .. entry .. (ARGV[3] or ''))
if fresh or restart then
  if mark ~= '' then set('m', pack('>I7', deleted) .. mark) end
  if ended ~= '' then set('x', ended) end
elseif lease ~= '' and (release == 1 or held == '') then
  set('l', '')
end
set(field, (first and first .. ':' or '') .. at * 2 + closing)
if changed then
  for c, bits in pairs(changed) do set('v' .. c, bits) end
end
call('HSET', row, unpack(new))

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
if KEYS[3] then enlist(KEYS[3], string.match(row, '^.*/(.*)}$'), updated, until_ms, lasting and ttl == 0) end
if (fresh or restart) and held ~= '' and release == 0 then
  -- include lease
  quietly('HSET', row, 'l', lease)
end
return 0

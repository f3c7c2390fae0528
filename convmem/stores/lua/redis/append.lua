-- Store an entry if the log ends where the caller saw it end. The outcome is decided in the order of stores/base.py.
--
-- ARGV[1]  "after_n turns start closing counts ttl release confirm": ttl in milliseconds, 0 for none; confirm 1 makes a
--          duplicate write something too, for WAIT counts the writes of its own connection only
-- ARGV[2]  epoch and ARGV[3] id of the head the caller saw; ARGV[4] epoch of the entry
-- ARGV[5]  pinned positions; ARGV[6] positions to hide; ARGV[7] field of its turn; ARGV[8] the entry
-- KEYS[3]  the owner's index and ARGV[9] the session id, where the index is in the same database
--
-- Everything is read and checked before the first write, and the first write is one that a full server refuses: nothing is
-- ever half stored.

local STORED_, DUPLICATE, CONFLICT, FENCED, GAP, GONE = 0, 1, 2, 3, 4, 5
local numbers = {}
for text in string.gmatch(ARGV[1], '%d+') do numbers[#numbers + 1] = tonumber(text) end
local after_n, new_turns, new_start, closing, counts, ttl, release, confirm = unpack(numbers)
local after_epoch, after_id = ARGV[2], ARGV[3]
local _, turn, token, entry = header(ARGV[8], 1)

local function refused(outcome)
  return {outcome, head()}
end

if after_epoch ~= '' and string.find(ended, '\n' .. after_epoch .. '\t', 1, true) then return refused(GONE) end
if after_epoch == '' and mark ~= '' and mark ~= after_id then return refused(GONE) end
if after_epoch ~= '' and after_epoch ~= epoch then return refused(GAP) end
if id_at(after_n + 1) == entry then
  if confirm == 1 then redis.call('HSET', row, 'h', fields[3]) end
  if release == 1 then let_go(token) end
  return DUPLICATE
end
local there = after_id
if after_n > 0 then there = id_at(after_n) end
if n < after_n or (there ~= after_id and not (there == nil and after_n < start)) then return refused(GAP) end
if emptied and after_n == n and new_start < n then return refused(GAP) end
if held ~= '' and held ~= token then return refused(FENCED) end
if n > after_n then return refused(CONFLICT) end

local at = n + 1
local fresh = epoch == ''
local restart = expired and new_start > start
local first, last, _, its_token = attempt(ARGV[7], turn)
local born = not fresh and redis.call('HGET', row, 'b') or string.format('%.0f', now)
local changed = {}
if not restart then
  if first and its_token ~= '' and its_token ~= token then
    for older = first, last do
      local text = entry_at(older)
      if text then
        local _, its_turn = header(text, STORED)
        if its_turn == turn then changed[hide(older)] = true end
      end
    end
    first = nil
  end
  if first and first <= base then first = nil end
  for text in string.gmatch(ARGV[6], '%d+') do changed[hide(tonumber(text))] = true end
else
  chunks, first = {}, nil
end

redis.call('RPUSH', log, struct.pack('>I7', now) .. ARGV[8])
if fresh and length > 0 then redis.call('LTRIM', log, -1, -1) end
if restart then
  base = math.max(emptied and n or base, math.min(new_start, at) - 1)
  redis.call('LTRIM', log, base - at, -1)
end
if counts == 0 then changed[hide(at)] = true end

local new = {'i', entry, ARGV[7], (first and first .. ':' or '') .. at * 2 + closing}
local function set(field, text) new[#new + 1] = field new[#new + 1] = text end
if fresh or restart then
  redis.call('UNLINK', row)  -- the lease goes with it, and is put back below
  set('e', ARGV[4])
  set('b', born)
  if mark ~= '' then set('m', fields[5]) end
  if ended ~= '' then set('x', ended) end
  if ARGV[5] ~= '' then set('p', ARGV[5]) end
elseif ARGV[5] ~= pinned then
  if ARGV[5] == '' then redis.call('HDEL', row, 'p') else set('p', ARGV[5]) end
end
updated = math.max(now, updated)
set('h', string.format('%d %d %d %d %.0f %.0f', at, new_turns, new_start, base, updated, ttl > 0 and now + ttl * 1000 or 0))
for c in pairs(changed) do set('v' .. c, chunks[c]) end
redis.call('HSET', row, unpack(new))

local until_ms = ttl > 0 and math.floor(now / 1000) + ttl + GRACE_MS or 0
if ttl > 0 then
  redis.call('PEXPIREAT', log, until_ms)
  redis.call('PEXPIREAT', row, mark ~= '' and math.max(until_ms, math.floor(deleted / 1000) + TOMBSTONE_MS) or until_ms)
else
  -- A row that held only a lease has a TTL that was not replicated, and a replica or a file written meanwhile may have it
  -- although this server has not: PERSIST alone would do nothing here and so reach nobody.
  if fresh then redis.call('PEXPIREAT', row, math.floor(now / 1000) + TOMBSTONE_MS) end
  redis.call('PERSIST', log)
  redis.call('PERSIST', row)
end
if KEYS[3] then enlist(KEYS[3], ARGV[9], updated, until_ms) end
if held == token and release == 1 or held == '' then
  if value then drop_lease() end
elseif fresh or restart then
  quietly()
  redis.call('HSET', row, 'l', value)
  aloud()
end
return STORED_

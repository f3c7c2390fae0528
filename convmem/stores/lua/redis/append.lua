-- Store an entry if the log ends where the caller saw it end. The outcome is decided in the order of stores/base.py.
--
-- ARGV[1]  flags (closing, counts, release, confirm, begins), n of the head the caller saw, turns, start, the TTL in
--          milliseconds or 0, the entry's epoch, id of that head. `confirm` makes a duplicate write something too, for WAIT
--          counts the writes of its own connection only; `begins` says that the caller saw no conversation.
-- ARGV[2]  the entry; ARGV[3] pinned positions and ARGV[4] positions to hide, when there are any
-- KEYS[3]  the owner's index, where it is in the same database
--
-- Everything is read and checked before the first write, and the first write is one that a full server refuses: nothing is
-- ever half stored.

local STORED_, DUPLICATE, CONFLICT, FENCED, GAP, GONE = 0, 1, 2, 3, 4, 5
local flags, after_n, new_turns, new_start, ttl, at_names = unpacked('>BI4I4I4I8', ARGV[1])
local function flag(bit) return math.floor(flags / bit) % 2 == 1 end
local its_epoch, at_id = name(ARGV[1], at_names)
local after_id = name(ARGV[1], at_id)
local after_epoch = flag(16) and '' or its_epoch
local release, new_pinned = flag(4), ARGV[3] or ''
local turn, token, entry = names(ARGV[2], 1)

local function refused(outcome)
  return {outcome, head()}
end

if after_epoch ~= '' and has_ended(after_epoch) then return refused(GONE) end
if after_epoch == '' and mark ~= '' and mark ~= after_id then return refused(GONE) end
if after_epoch ~= '' and after_epoch ~= epoch then return refused(GAP) end
if id_at(after_n + 1) == entry then
  if flag(8) then call('HSET', row, 'h', fields[2]) end
  if release then let_go(token) end
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
local lasting = not fresh and expires == 0  -- no key of it has a TTL
local first, last, _, its_token = attempt(turn)
local changed = {}
if last == n then joined = at end
if not restart then
  if first and its_token ~= '' and its_token ~= token then
    for older = first, last do
      local text = entry_at(older)
      if text and names(text, STORED) == turn then changed[hide(older)] = true end
    end
    first = nil
  end
  if first and first <= base then first = nil end
  if ARGV[4] then
    for text in string.gmatch(ARGV[4], '%d+') do changed[hide(tonumber(text))] = true end
  end
else
  chunks, first, veil = {}, nil, 0
end

call('RPUSH', log, pack('>I7', now) .. ARGV[2])
if fresh and length > 0 then call('LTRIM', log, -1, -1) end
if restart then
  base = math.max(emptied and n or base, math.min(new_start, at) - 1)
  call('LTRIM', log, base - at, -1)
end
if not flag(2) then changed[hide(at)] = true end

local cleared = 1
local new = {}
local function set(field, text) new[#new + 1] = field new[#new + 1] = text end
if fresh or restart then
  cleared = call('UNLINK', row)  -- the lease goes with it, and is put back below
  if fresh then epoch, begun = its_epoch, now end
  set('e', pack('>I7', begun) .. epoch)
end
updated = math.max(now, updated)
expires = ttl > 0 and now + ttl * 1000 or 0
n, turns, start, id, pinned = at, new_turns, new_start, entry, new_pinned
set('h', write_head())
if fresh or restart then
  if mark ~= '' then set('m', pack('>I7', deleted) .. mark) end
  if ended ~= '' then set('x', ended) end
end
set(field_of(turn), (first and first .. ':' or '') .. at * 2 + (flag(1) and 1 or 0))
for c in pairs(changed) do set('v' .. c, chunks[c]) end
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
if KEYS[3] then enlist(KEYS[3], string.match(row, '([^/]+)}$'), updated, until_ms, lasting and ttl == 0) end
if fresh or restart then
  if held ~= '' and not release then write_lease(lease) end
elseif lease ~= '' and (release or held == '') then
  write_lease('')
end
return STORED_

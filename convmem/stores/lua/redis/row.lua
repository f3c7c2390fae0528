-- In front of every script that looks at a conversation: its row, whether its log is whole, and its lease, as of now.
--
-- KEYS[1]  row, a hash: e epoch, i id of the newest entry, h "n turns start base updated expires", b when it was begun,
--          p pinned positions, m "when mark" of the newest delete, x the epochs that deletes ended,
--          t<digest> where a turn stands, v<chunk> which of 64 positions are out of sight, l the lease "taken until token"
-- KEYS[2]  log, a list: the entry at position n has index n - 1 - base
--
-- Two keys and no third: while a cluster moves a slot it answers a call only when all its keys are there, or none.
-- Times are microseconds since 1970 by the server's clock. Names (ids, tokens, turns, marks) come packed, as in redis_layout.py.

local row, log = KEYS[1], KEYS[2]
local CHUNK = 64
local TOMBSTONE_MS = 2592000000    -- TOMBSTONE_LIFE of stores/base.py

local fields = redis.call('HMGET', row, 'e', 'i', 'h', 'p', 'm', 'x', 'l')
local epoch, id, pinned, ended = fields[1] or '', fields[2] or '', fields[4] or '', fields[6] or ''
local n, turns, start, base, updated, expires = 0, 0, 0, 0, 0, 0
if fields[3] then
  local numbers = {}
  for number in string.gmatch(fields[3], '%d+') do numbers[#numbers + 1] = tonumber(number) end
  n, turns, start, base, updated, expires = unpack(numbers)
end
local deleted, mark = 0, ''
if fields[5] then
  local space = string.find(fields[5], ' ', 1, true)
  deleted, mark = tonumber(string.sub(fields[5], 1, space - 1)), string.sub(fields[5], space + 1)
end

local length = redis.call('LLEN', log)
local expired = expires > 0 and now >= expires
local emptied = expired and length == 0
local present = epoch ~= '' and (length == n - base or emptied)
local last_epoch = epoch
if not present then  -- nobody has written it, it was deleted, or the server evicted half of it
  epoch, id, pinned, expired, emptied = '', '', '', false, false
  n, turns, start, base, updated, expires = 0, 0, 0, 0, 0, 0
end

local held, taken, till = '', 0, 0
local value = fields[7]
if value then
  local a = string.find(value, ' ', 1, true)
  local b = string.find(value, ' ', a + 1, true)
  taken, till = tonumber(string.sub(value, 1, a - 1)), tonumber(string.sub(value, a + 1, b - 1))
  if now < till then held = string.sub(value, b + 1) end
end

-- A lease need not survive a crash or a failover, so it costs neither replication nor a flush. Between these two only the
-- field l is ever touched, and the TTL of a row that holds nothing else: what a replica lacks of the log would be a loss.
local function quietly() if redis.set_repl then pcall(redis.set_repl, redis.REPL_NONE) end end
local function aloud() if redis.set_repl then pcall(redis.set_repl, redis.REPL_ALL) end end

local function hold(token, term)
  if held ~= token then taken = now end
  held, till = token, now + term * 1000
  quietly()
  redis.call('HSET', row, 'l', string.format('%.0f %.0f ', taken, till) .. token)
  if not fields[3] and not fields[5] then redis.call('PEXPIRE', row, term) end
  aloud()
end

local function drop_lease()
  quietly()
  redis.call('HDEL', row, 'l')
  aloud()
  held = ''
end

local function let_go(token)
  if held == token and token ~= '' then drop_lease() end
end

local function same(other_epoch, other_n, other_id)
  if epoch == '' then return other_epoch == '' and other_n == 0 and other_id == mark end
  return other_epoch == epoch and other_n == n and other_id == id
end

-- One packed name of an entry and where the next one begins.
local function name(text, at)
  local tag = string.byte(text, at)
  local size = tag + 1
  if tag >= 254 then size = 17
  elseif tag == 253 then size = 3 + 256 * string.byte(text, at + 1) + string.byte(text, at + 2) end
  return string.sub(text, at, at + size - 1), at + size
end

local function number(text, at)
  local result, scale = 0, 1
  while true do
    local byte = string.byte(text, at)
    at = at + 1
    if byte < 128 then return result + byte * scale, at end
    result, scale = result + (byte - 128) * scale, scale * 128
  end
end

-- What a script needs to know of an entry: how many messages, its turn, its token, its id. `at` is where the count stands.
local function header(text, at)
  local count, turn, token, entry
  count, at = number(text, at)
  turn, at = name(text, at)
  token, at = name(text, at)
  entry = name(text, at)
  return count, turn, token, entry
end
local STORED = 8  -- in front of a stored entry: seven bytes of when

-- The first two of these, which a window needs of each of its entries.
local function count_and_turn(text)
  local count, tag = string.byte(text, STORED, STORED + 1)
  if count < 128 and tag >= 254 then return count, string.sub(text, STORED + 1, STORED + 17) end
  local long, turn = header(text, STORED)
  return long, turn
end

local function entry_at(position)
  if position <= base or position > n or emptied then return false end
  return redis.call('LINDEX', log, position - 1 - base)
end

local function id_at(position)
  if position == n and n > 0 then return id end
  local text = entry_at(position)
  if not text then return nil end
  local _, _, _, entry = header(text, STORED)
  return entry
end

local chunks = {}
local function chunk_of(position) return math.floor((position - 1) / CHUNK) end
local function chunk(c)  -- 64 characters, 1 for out of sight; false when all are in sight
  if chunks[c] == nil then chunks[c] = epoch ~= '' and redis.call('HGET', row, 'v' .. c) end
  return chunks[c]
end
local function hidden(position)
  local c = chunk_of(position)
  local bits = chunk(c)
  return bits and string.byte(bits, position - c * CHUNK) == 49
end
local function hide(position)
  local c = chunk_of(position)
  local bits = chunk(c) or string.rep('0', CHUNK)
  local i = position - c * CHUNK
  chunks[c] = string.sub(bits, 1, i - 1) .. '1' .. string.sub(bits, i + 1)
  return c
end
local function shown(position) return position > start and position > base and not hidden(position) end

-- Where the newest attempt at a turn stands: first and last position, and whether it is closed; nil when there is none.
-- "last * 2 + closed", with "first:" in front when there are several.
local function attempt(field, turn)
  if epoch == '' then return nil end
  local text = redis.call('HGET', row, field)
  if not text then return nil end
  local colon = string.find(text, ':', 1, true)
  local code = tonumber(colon and string.sub(text, colon + 1) or text)
  local last, closed = math.floor(code / 2), code % 2 == 1
  local first = colon and tonumber(string.sub(text, 1, colon - 1)) or last
  local entry = entry_at(last)
  if not entry then return first, last, closed, '' end
  local _, its_turn, token = header(entry, STORED)
  if its_turn ~= turn then return nil end  -- another turn with the same digest
  return first, last, closed, token
end

local function head() return {epoch, id, string.format('%d %d %d', n, turns, start), pinned, mark} end

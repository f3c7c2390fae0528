-- In front of every script that looks at a conversation: its row, whether its log is whole, and its lease, as of now.
--
-- KEYS[1]  row, a hash, its first fields first, for a small hash is searched from its front:
--          e  when it was begun, and the epoch
--          h  the head: see HEAD; then the id of the newest entry and the pinned positions
--          l  the lease: when it was taken, until when, the token; empty when it was given back
--          m  when it was deleted last, and the mark; x the epochs that deletes ended, each with when
--          t<turn>  where a turn stands; v<chunk>  which of 64 positions are out of sight
-- KEYS[2]  log, a list: the entry at position n has index n - 1 - base
--
-- Two keys and no third: while a cluster moves a slot it answers a call only when all its keys are there, or none.
-- Times are microseconds since 1970 by the server's clock. Names (ids, tokens, turns, marks, epochs) come packed, as in
-- redis_layout.py; here '' is none.

local call, byte, sub, pack, unpacked = redis.call, string.byte, string.sub, struct.pack, struct.unpack
local row, log = KEYS[1], KEYS[2]
local CHUNK = 64
local TOMBSTONE_MS = 2592000000    -- TOMBSTONE_LIFE of stores/base.py
local STORED = 8  -- where a stored entry begins, behind seven bytes of when
local PLAIN = 16  -- of an entry's first byte: its turn, token and id are two UUIDs with a base64 between, without their tags
local HEAD = '>BI7I7I4I4I4I4I4I4'

-- One packed name and where the next one begins.
local function name(text, at)
  local tag = byte(text, at)
  if tag == 0 then return '', at + 1 end
  local size = tag + 1
  if tag >= 254 then size = 17
  elseif tag == 253 then size = 3 + 256 * byte(text, at + 1) + byte(text, at + 2) end
  return sub(text, at, at + size - 1), at + size
end

local function number(text, at)
  local result, scale = 0, 1
  while true do
    local digit = byte(text, at)
    at = at + 1
    if digit < 128 then return result + digit * scale, at end
    result, scale = result + (digit - 128) * scale, scale * 128
  end
end

-- The turn, the token and the id of an entry, and where its numbers stand: how many messages, how many turns, start.
local function names(text, at)
  if byte(text, at) >= PLAIN then
    return '\255' .. sub(text, at + 1, at + 16), '\254' .. sub(text, at + 17, at + 32), '\255' .. sub(text, at + 33, at + 48), at + 49
  end
  local turn, token, entry
  turn, at = name(text, at + 1)
  token, at = name(text, at)
  entry, at = name(text, at)
  return turn, token, entry, at
end

local fields = call('HMGET', row, 'e', 'h', 'l')
local length = call('LLEN', log)
local epoch, begun, id, pinned = '', 0, '', ''
local has_mark, updated, expires, n, turns, start, base = 0, 0, 0, 0, 0, 0, 0
local veil, joined = 0, 0  -- the last position that is out of sight, and the last whose entry goes on with the turn of the one before
local mark, deleted, ended = '', 0, ''
if fields[1] then
  begun = unpacked('>I7', fields[1])
  epoch = sub(fields[1], 8)
  local at
  has_mark, updated, expires, n, turns, start, base, veil, joined, at = unpacked(HEAD, fields[2])
  id, at = name(fields[2], at)
  pinned = sub(fields[2], at)
end
if has_mark == 1 or not fields[1] then
  local tomb = call('HMGET', row, 'm', 'x')
  if tomb[1] then deleted, mark, ended = unpacked('>I7', tomb[1]), sub(tomb[1], 8), tomb[2] or '' end
end

local expired = expires > 0 and now >= expires
local emptied = expired and length == 0
local last_epoch = epoch
if epoch ~= '' and length ~= n - base and not emptied then  -- the server evicted half of it
  epoch, begun, id, pinned, expired = '', 0, '', '', false
  updated, expires, n, turns, start, base, veil, joined = 0, 0, 0, 0, 0, 0, 0, 0
end

local held, taken, till = '', 0, 0
local lease = fields[3] or ''
if lease ~= '' then
  taken, till = unpacked('>I7I7', lease)
  if now < till then held = sub(lease, 15) end
end

-- A lease need not survive a crash or a failover, so it costs neither replication nor a flush. Between these two only the
-- field l is ever touched, and the TTL of a row that holds nothing else: what a replica lacks of the log would be a loss.
local function quietly() if redis.set_repl then pcall(redis.set_repl, redis.REPL_NONE) end end
local function aloud() if redis.set_repl then pcall(redis.set_repl, redis.REPL_ALL) end end

local function write_lease(text)
  quietly()
  call('HSET', row, 'l', text)
  aloud()
end

local function hold(token, term)
  if held ~= token then taken = now end
  held, till = token, now + term * 1000
  lease = pack('>I7I7', taken, till) .. token
  write_lease(lease)
  if not fields[1] and mark == '' then
    quietly()
    call('PEXPIRE', row, term)
    aloud()
  end
end

local function let_go(token)
  if held ~= token or token == '' then return end
  held = ''
  if fields[1] or mark ~= '' then return write_lease('') end
  quietly()
  call('HDEL', row, 'l')
  aloud()
end

local function write_head()
  return pack(HEAD, mark ~= '' and 1 or 0, updated, expires, n, turns, start, base, veil, joined) .. id .. pinned
end

local function same(other_epoch, other_n, other_id)
  if epoch == '' then return other_epoch == '' and other_n == 0 and other_id == mark end
  return other_epoch == epoch and other_n == n and other_id == id
end

local function has_ended(life)
  local at, one = 1, ''
  while at <= #ended do
    one, at = name(ended, at)
    if one == life then return true end
    at = at + 7
  end
  return false
end

local function entry_at(position)
  if position <= base or position > n or emptied then return false end
  return call('LINDEX', log, position - 1 - base)
end

local function id_at(position)
  if position == n and n > 0 then return id end
  local text = entry_at(position)
  if not text then return nil end
  local _, _, entry = names(text, STORED)
  return entry
end

local chunks = {}
local function chunk_of(position) return math.floor((position - 1) / CHUNK) end
local function chunk(c)  -- 64 characters, 1 for out of sight; false when all are in sight
  if chunks[c] == nil then chunks[c] = veil > c * CHUNK and call('HGET', row, 'v' .. c) end
  return chunks[c]
end
local function hidden(position)
  if position > veil then return false end
  local c = chunk_of(position)
  local bits = chunk(c)
  return bits and byte(bits, position - c * CHUNK) == 49
end
local function hide(position)
  local c = chunk_of(position)
  local bits = chunk(c) or string.rep('0', CHUNK)
  local i = position - c * CHUNK
  chunks[c] = sub(bits, 1, i - 1) .. '1' .. sub(bits, i + 1)
  veil = math.max(veil, position)
  return c
end
local function shown(position) return position > start and position > base and not hidden(position) end

-- The field of a turn: a long name is digested, so that it costs no more than a short one.
local function field_of(turn) return 't' .. (#turn <= 17 and turn or redis.sha1hex(turn)) end

-- Where the newest attempt at a turn stands: first and last position, whether it is closed, its token; nil when there is none.
-- "last * 2 + closed", with "first:" in front when there are several.
local function attempt(turn)
  local text = epoch ~= '' and call('HGET', row, field_of(turn))
  if not text then return nil end
  local colon = string.find(text, ':', 1, true)
  local code = tonumber(colon and sub(text, colon + 1) or text)
  local last, closed = math.floor(code / 2), code % 2 == 1
  local first = colon and tonumber(sub(text, 1, colon - 1)) or last
  local entry = entry_at(last)
  if not entry then return first, last, closed, '' end
  local its_turn, token = names(entry, STORED)
  if its_turn ~= turn then return nil end  -- another turn with the same digest
  return first, last, closed, token
end

-- "n turns start", epoch and id, or for an absent conversation none and the newest mark, and the pinned positions.
local function head()
  if epoch == '' then return pack('>I4I4I4', 0, 0, 0) .. '\0' .. (mark == '' and '\0' or mark) end
  return pack('>I4I4I4', n, turns, start) .. epoch .. id .. pinned
end

-- What stands in the log, where its turns stand, and what of it is out of sight. Needs entry.

local CHUNK = 64
local STORED = 8  -- where a stored entry begins, behind seven bytes of when

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
local function shown(position) return position > start and position > base and not hidden(position) end

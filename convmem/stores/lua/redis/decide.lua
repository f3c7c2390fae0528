-- The outcome of an append that is not simply the next entry of a new turn, and what it takes out of sight.

-- include head
local DUPLICATE, CONFLICT, FENCED, GAP, GONE = 1, 2, 3, 4, 5
local function refused(outcome) return {outcome, head} end

local function has_ended(life)
  local place, one = 1, ''
  while place <= #ended do
    one, place = name(ended, place)
    if one == life then return true end
    place = place + 7
  end
  return false
end

local function hide(position)
  local c = chunk_of(position)
  local bits = chunk(c) or string.rep('0', CHUNK)
  local i = position - c * CHUNK
  chunks[c] = sub(bits, 1, i - 1) .. '1' .. sub(bits, i + 1)
  changed[c] = chunks[c]
  veil = math.max(veil, position)
end

if after_epoch ~= '' and has_ended(after_epoch) then return refused(GONE) end
if after_epoch == '' and mark ~= '' and mark ~= after_id then return refused(GONE) end
if after_epoch ~= '' and after_epoch ~= epoch then return refused(GAP) end
if id_at(after_n + 1) == entry then
  if confirm == 1 then call('HSET', row, 'h', fields[2]) end
  if release == 1 then
    -- include let_go
  end
  return DUPLICATE
end
local there = after_id
if after_n > 0 then there = id_at(after_n) end
if n < after_n or (there ~= after_id and not (there == nil and after_n < start)) then return refused(GAP) end
if emptied and after_n == n and new_start < n then return refused(GAP) end
if held ~= '' and held ~= token then return refused(FENCED) end
if n > after_n then return refused(CONFLICT) end

local last, _, its_token
first, last, _, its_token = attempt(turn)
if last == n then joined = at end
changed = {}
restart = expired and new_start > start
if restart then
  chunks, first, veil = {}, nil, 0
else
  if first and its_token ~= '' and its_token ~= token then
    for older = first, last do
      local text = entry_at(older)
      if text and names(text, STORED) == turn then hide(older) end
    end
    first = nil
  end
  if first and first <= base then first = nil end
  for text in string.gmatch(ARGV[6] or '', '%d+') do hide(tonumber(text)) end
end
if counts == 0 then hide(at) end

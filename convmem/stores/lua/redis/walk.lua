-- What became of the turn that is looked up, what of the window the caller does not read itself, and the pinned entries.

local function number(text, at)
  local result, scale = 0, 1
  while true do
    local digit = byte(text, at)
    at = at + 1
    if digit < 128 then return result + digit * scale, at end
    result, scale = result + (digit - 128) * scale, scale * 128
  end
end

if looked_up then
  local first, last, closed, its_token = attempt(looked_up)
  if first then
    position = last
    state = closed and COMPLETE or (held ~= '' and its_token == held) and RUNNING or INTERRUPTED
    for at = first, expired and 0 or last do
      if shown(at) and names(entry_at(at), STORED) == looked_up then visible = 1 break end
    end
  end
end

-- Newest first; a number says at which position the entry behind it stands, when it does not follow.
window = {}
local at, expected, turn = (own > 0 and n + 1 or oldest) - 1, -1, nil
local seen_turns, seen_messages = 0, 0
while at > floor and not enough do
  local c = chunk_of(at)
  local bits = chunk(c)
  if bits and not string.find(bits, '0', 1, true) then
    at = c * CHUNK
  elseif bits and byte(bits, at - c * CHUNK) == 49 then
    at = at - 1
  else
    local size = 128
    if most_turns then size = math.min(size, most_turns - seen_turns + 1) end
    if most_messages then size = math.min(size, math.ceil((most_messages - seen_messages) / 2) + 1) end
    local from = math.max(floor + 1, at - math.max(size, 4) + 1)
    local entries = call('LRANGE', log, from - 1 - base, at - 1 - base)
    for k = #entries, 1, -1 do
      local here = from + k - 1
      if not hidden(here) then
        local its_turn, _, _, numbers = names(entries[k], STORED)
        if its_turn ~= turn then
          if (most_turns and seen_turns >= most_turns) or (most_messages and seen_messages >= most_messages) then
            enough = true
            break
          end
          seen_turns, turn = seen_turns + 1, its_turn
        end
        seen_messages = seen_messages + number(entries[k], numbers)
        if here <= n - own then
          if here ~= expected then window[#window + 1] = here end
          window[#window + 1] = entries[k]
          expected, oldest = here - 1, here
        end
      end
    end
    at = from - 1
  end
end

pins = {}
if pinned ~= '' and not expired then
  for text in string.gmatch(pinned, '%d+') do
    local here = tonumber(text)
    if here < oldest and shown(here) then
      pins[#pins + 1] = here
      pins[#pins + 1] = entry_at(here)
    end
  end
end

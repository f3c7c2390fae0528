-- The window, the head, the lease, and what became of a turn; the lease is taken when it is wanted and free.
--
-- ARGV[1]  "turns messages before", each a number or -
-- ARGV[2]  field of the turn to look up, or empty; ARGV[3] the turn
-- ARGV[4]  token of the lease to take, or empty; ARGV[5] its term in milliseconds

local limits = {}
for limit in string.gmatch(ARGV[1], '%S+') do limits[#limits + 1] = tonumber(limit) or false end
local most_turns, most_messages, before = limits[1], limits[2], limits[3]

local state, position, visible = 'absent', 0, 0
if ARGV[2] ~= '' then
  local first, last, closed, token = attempt(ARGV[2], ARGV[3])
  if first then
    position = last
    state = closed and 'complete' or (held ~= '' and token == held) and 'running' or 'interrupted'
    for at = first, expired and 0 or last do
      if shown(at) then visible = 1 break end
    end
  end
end

if ARGV[4] ~= '' and state ~= 'complete' and (held == '' or held == ARGV[4]) then hold(ARGV[4], tonumber(ARGV[5])) end

-- Newest first; a number says at which position the entry behind it stands, when it does not follow.
local window, oldest = {}, n + 1
if before and before < oldest then oldest = before end
if epoch ~= '' and not expired and most_turns ~= 0 and most_messages ~= 0 then
  local at, floor, expected, turn = oldest - 1, math.max(start, base), -1, nil
  local seen_turns, seen_messages, enough = 0, 0, false
  while at > floor and not enough do
    local c = chunk_of(at)
    local bits = chunk(c)
    if bits and not string.find(bits, '0', 1, true) then
      at = c * CHUNK
    elseif bits and string.byte(bits, at - c * CHUNK) == 49 then
      at = at - 1
    else
      local size = 128
      if most_turns then size = math.min(size, most_turns - seen_turns + 1) end
      if most_messages then size = math.min(size, math.ceil((most_messages - seen_messages) / 2) + 1) end
      local from = math.max(floor + 1, at - math.max(size, 4) + 1)
      local entries = redis.call('LRANGE', log, from - 1 - base, at - 1 - base)
      local maybe = chunk(chunk_of(from)) or bits or chunk_of(at) - chunk_of(from) > 1
      for k = #entries, 1, -1 do
        local here = from + k - 1
        if not (maybe and hidden(here)) then
          local count, its_turn = count_and_turn(entries[k])
          if its_turn ~= turn then
            if (most_turns and seen_turns >= most_turns) or (most_messages and seen_messages >= most_messages) then
              enough = true
              break
            end
            seen_turns, turn = seen_turns + 1, its_turn
          end
          if here ~= expected then window[#window + 1] = here end
          window[#window + 1] = entries[k]
          seen_messages, expected, oldest = seen_messages + count, here - 1, here
        end
      end
      at = from - 1
    end
  end
end

local pins = {}
if epoch ~= '' and not expired then
  for text in string.gmatch(pinned, '%d+') do
    local at = tonumber(text)
    if at < oldest and shown(at) then
      pins[#pins + 1] = at
      pins[#pins + 1] = entry_at(at)
    end
  end
end

return {now, head(), expired and 1 or 0, deleted, ended, held, taken, till, state, position, visible, window, pins}

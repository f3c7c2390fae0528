-- The window, the head, the lease, and what became of a turn; the lease is taken when it is wanted and free.
--
-- ARGV[1]  turns + 1, messages + 1, before, tail, each 0 for none; term in milliseconds; the token of the lease to take and
--          the turn to look up, or none
--
-- A script's reply is copied twice, a command's once. So the caller reads the last `tail` entries itself, by a command right
-- behind this script, and is told how many of them are of the window; only older ones are in the reply. It sees by the id of
-- the head whether the log has moved in between.

local most_turns, most_messages, before, tail, term, at_names = unpacked('>I4I4I4I4I8', ARGV[1])
most_turns, most_messages = most_turns > 0 and most_turns - 1, most_messages > 0 and most_messages - 1
local wanted, at_turn = name(ARGV[1], at_names)
local looked_up = name(ARGV[1], at_turn)

local RUNNING, INTERRUPTED, COMPLETE = 1, 2, 3
local state, position, visible = 0, 0, 0
if looked_up ~= '' then
  local first, last, closed, token = attempt(looked_up)
  if first then
    position = last
    state = closed and COMPLETE or (held ~= '' and token == held) and RUNNING or INTERRUPTED
    for at = first, expired and 0 or last do
      if shown(at) then visible = 1 break end
    end
  end
end

if wanted ~= '' and state ~= COMPLETE and (held == '' or held == wanted) then hold(wanted, term) end

-- Newest first; a number says at which position the entry behind it stands, when it does not follow.
local window, own, oldest = {}, 0, n + 1
if before > 0 and before < oldest then oldest = before end
if epoch ~= '' and not expired and most_turns ~= 0 and most_messages ~= 0 then
  local at, floor, expected, turn = oldest - 1, math.max(start, base), -1, nil
  local seen_turns, seen_messages, enough = 0, 0, false
  if tail > 0 then
    own = math.min(tail, n - floor)
    local behind = n - own
    if veil > behind then
      own = 0
    else
      oldest = behind + 1
      enough = behind == floor or (joined <= behind and veil < behind)  -- each is a turn of its own
    end
  end
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
end

local pins = {}
if pinned ~= '' and not expired then
  for text in string.gmatch(pinned, '%d+') do
    local at = tonumber(text)
    if at < oldest and shown(at) then
      pins[#pins + 1] = at
      pins[#pins + 1] = entry_at(at)
    end
  end
end

local mine = held ~= '' and held == wanted
local flags = (expired and 1 or 0) + 2 * visible + 4 * state + (mine and 16 or 0)
local facts = pack('>BI4I4I8I8I8', flags, position, own, held == '' and 0 or now - taken, held == '' and 0 or till - now, deleted)
  .. ((mine or held == '') and '\0' or held) .. head()
if #window == 0 and #pins == 0 and ended == '' then return facts end
return {facts, window, pins, ended}

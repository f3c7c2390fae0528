-- The window, the head, the lease, and what became of a turn; the lease is taken when it is wanted and free.
--
-- ARGV[1]  turns + 1, messages + 1, before, tail, each 0 for none; term in milliseconds
-- ARGV[2]  the token of the lease to take, empty for none; ARGV[3] the turn to look up, when there is one
--
-- A script's reply is copied twice, a command's once. So the caller reads the last `tail` entries itself, by a command right
-- behind this script, and is told how many of them are of the window; only older ones are in the reply. It sees by the id of
-- the head whether the log has moved in between.

-- include clock
-- include name
local fields = call('HMGET', KEYS[1], 'e', 'h', 'l')
-- include row
local most_turns, most_messages, before, tail, term = unpacked('>I4I4I4I4I4', ARGV[1])
most_turns, most_messages = most_turns > 0 and most_turns - 1, most_messages > 0 and most_messages - 1
local token, looked_up = ARGV[2], ARGV[3]

local RUNNING, INTERRUPTED, COMPLETE = 1, 2, 3
local state, position, visible = 0, 0, 0
local own, floor, oldest, enough = 0, math.max(start, base), n + 1, true
if before > 0 and before < oldest then oldest = before end
if epoch ~= '' and not expired and most_turns ~= 0 and most_messages ~= 0 then
  enough = oldest - 1 <= floor
  local newest = math.min(tail, n - floor)
  if newest > 0 and veil <= n - newest then
    own, oldest = newest, n - newest + 1
    enough = n - own == floor or (joined <= n - own and veil < n - own)  -- each is a turn of its own
  end
end

local window, pins
if not enough or looked_up or pinned ~= '' then
  -- include entry
  -- include log
  -- include walk
end

if token ~= '' and state ~= COMPLETE and (held == '' or held == token) then
  -- include hold
end

-- include head
local mine = held ~= '' and held == token
local flags = (expired and 1 or 0) + 2 * visible + 4 * state + (mine and 16 or 0)
local facts = pack('>BI4I4I8I8I8', flags, position, own, held == '' and 0 or now - taken, held == '' and 0 or till - now, deleted)
  .. ((mine or held == '') and '\0' or held) .. head
if (not window or #window + #pins == 0) and ended == '' then return facts end
return {facts, window or {}, pins or {}, ended}

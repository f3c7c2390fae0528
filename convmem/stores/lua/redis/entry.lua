-- The turn, the token and the id of an entry, and where its numbers stand: how many messages, how many turns, start. Its first
-- byte says whether they are two UUIDs with a base64 between, without their tags, and whether the id is the turn's, and left out.
local PLAIN, ALONE = 16, 32
local function names(text, at)
  local flags = byte(text, at)
  if flags >= PLAIN then
    local turn, token = '\255' .. sub(text, at + 1, at + 16), '\254' .. sub(text, at + 17, at + 32)
    if flags >= ALONE then return turn, token, turn, at + 33 end
    return turn, token, '\255' .. sub(text, at + 33, at + 48), at + 49
  end
  local turn, token, entry
  turn, at = name(text, at + 1)
  token, at = name(text, at)
  entry, at = name(text, at)
  return turn, token, entry, at
end

-- The field of a turn: a long name is digested, so that it costs no more than a short one.
local function field_of(turn) return 't' .. (#turn <= 17 and turn or redis.sha1hex(turn)) end

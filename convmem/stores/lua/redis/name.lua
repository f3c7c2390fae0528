-- Names (ids, tokens, turns, marks, epochs) come packed, as in redis_layout.py; here '' is none.

local call, byte, sub, pack, unpacked = redis.call, string.byte, string.sub, struct.pack, struct.unpack

-- One packed name and where the next one begins.
local function name(text, at)
  local tag = byte(text, at)
  if tag == 0 then return '', at + 1 end
  local size = tag + 1
  if tag >= 254 then size = 17
  elseif tag == 253 then size = 3 + 256 * byte(text, at + 1) + byte(text, at + 2) end
  return sub(text, at, at + size - 1), at + size
end

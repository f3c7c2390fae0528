-- "n turns start", epoch and id, or for an absent conversation none and the newest mark, and the pinned positions.
local function head()
  if epoch == '' then return pack('>I4I4I4', 0, 0, 0) .. '\0' .. (mark == '' and '\0' or mark) end
  return pack('>I4I4I4', n, turns, start) .. epoch .. id .. pinned
end

local function same(other_epoch, other_n, other_id)
  return other_epoch == epoch and other_n == n and other_id == (epoch == '' and mark or id)
end

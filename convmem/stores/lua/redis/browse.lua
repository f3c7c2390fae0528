-- A page of an owner's index.
-- KEYS[1] the index; ARGV[1] "down" from the newest or "up" from the oldest; ARGV[2] score and ARGV[3] session id behind which
-- it begins, empty for the front; ARGV[4] how many

-- include clock
local down, score, session, most = ARGV[1] == 'down', ARGV[2], ARGV[3], tonumber(ARGV[4])
local page, skip = {}, 0
while #page < 2 * most do
  local found
  if down then
    found = redis.call('ZREVRANGEBYSCORE', KEYS[1], score == '' and '+inf' or score, '-inf', 'WITHSCORES', 'LIMIT', skip, most)
  else
    found = redis.call('ZRANGEBYSCORE', KEYS[1], score == '' and '-inf' or score, '+inf', 'WITHSCORES', 'LIMIT', skip, most)
  end
  for k = 1, #found, 2 do
    local tied = score ~= '' and tonumber(found[k + 1]) == tonumber(score)
    local passed = tied and (down and found[k] >= session or not down and found[k] <= session)
    if not passed and #page < 2 * most then
      page[#page + 1] = found[k]
      page[#page + 1] = found[k + 1]
    end
  end
  if #found < 2 * most then break end
  skip = skip + most
end
return {now, page}

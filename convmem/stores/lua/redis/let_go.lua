-- End the lease, if it is the one with `token`.
-- include quietly
if held == token and token ~= '' then
  if fields[1] or mark ~= '' then quietly('HSET', row, 'l', '') else quietly('HDEL', row, 'l') end
end

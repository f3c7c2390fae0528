-- End the lease with this token. ARGV[1] the token

-- include clock
-- include name
local fields = call('HMGET', KEYS[1], 'e', 'h', 'l')
-- include row
local token = ARGV[1]
-- include let_go
return 1

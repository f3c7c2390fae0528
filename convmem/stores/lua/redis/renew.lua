-- Hold the lease for another term; one that ran out only while nobody holds it and the log still ends at the head.
-- ARGV[1] term in milliseconds, n of the head; ARGV[2] the token; ARGV[3] epoch and ARGV[4] id of the head

-- include clock
-- include name
local fields = call('HMGET', KEYS[1], 'e', 'h', 'l')
-- include row
local term, at_n = unpacked('>I8I4', ARGV[1])
local token = ARGV[2]
if held ~= token and (held ~= '' or epoch ~= ARGV[3] or n ~= at_n or tip ~= ARGV[4]) then return 0 end
-- include hold
return 1

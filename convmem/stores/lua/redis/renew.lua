-- Hold the lease for another term; one that ran out only while nobody holds it and the log still ends at the head.
-- ARGV[1] term in milliseconds, n of the head; the token, epoch and id of the head

-- include clock
-- include names
-- include row
-- include head
-- include lease
local term, at_n, at = unpacked('>I8I4', ARGV[1])
local token, at_epoch, at_id
token, at = name(ARGV[1], at)
at_epoch, at = name(ARGV[1], at)
at_id = name(ARGV[1], at)
if held ~= token and (held ~= '' or not same(at_epoch, at_n, at_id)) then return 0 end
hold(token, term)
return 1

-- Hold the lease for another term; one that ran out only while nobody holds it and the log still ends at the head.
-- ARGV[1] token, ARGV[2] term in milliseconds, ARGV[3] epoch, ARGV[4] n and ARGV[5] id of the head

if held ~= ARGV[1] and (held ~= '' or not same(ARGV[3], tonumber(ARGV[4]), ARGV[5])) then return 0 end
hold(ARGV[1], tonumber(ARGV[2]))
return 1

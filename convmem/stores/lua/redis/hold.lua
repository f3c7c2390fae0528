-- Hold the lease with `token` for `term` milliseconds from now.
-- include quietly
if held ~= token then taken = now end
held, till = token, now + term * 1000
quietly('HSET', row, 'l', pack('>I7I7', taken, till) .. token)
if not fields[1] and mark == '' then quietly('PEXPIRE', row, term) end

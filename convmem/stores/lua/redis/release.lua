-- End the lease with this token. ARGV[1] the token

-- include clock
-- include names
-- include row
-- include lease
let_go(ARGV[1])
return 1

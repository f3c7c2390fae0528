-- End the lease with this token. ARGV[1] the token
let_go(ARGV[1])
return 1

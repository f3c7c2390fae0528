-- End the lease with this token. ARGV[1] token
let_go(ARGV[1])
return 1

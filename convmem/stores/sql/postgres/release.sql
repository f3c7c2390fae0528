-- $1 conversation  $2 token
UPDATE convmem.convmem_lease SET token = '', until = '-infinity' WHERE conversation = $1::uuid AND token = $2::bytea

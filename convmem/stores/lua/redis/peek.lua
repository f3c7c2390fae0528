-- What a list shows of a conversation.

-- include clock
-- include name
local fields = call('HMGET', KEYS[1], 'e', 'h', 'l')
-- include row
-- include head
return {head, epoch == '' and 0 or unpacked('>I7', fields[1]), updated, expired and 1 or 0}

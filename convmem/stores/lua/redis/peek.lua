-- What a list shows of a conversation.

-- include clock
-- include names
-- include row
-- include head
return {head(), begun, updated, expired and 1 or 0}

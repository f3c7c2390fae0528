-- What a list shows of a conversation.
return {head(), begun, updated, expired and 1 or 0}

-- What a list shows of a conversation.
return {head(), redis.call('HGET', row, 'b') or '0', updated, expired and 1 or 0}

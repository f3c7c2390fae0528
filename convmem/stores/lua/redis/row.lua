-- A conversation's row, and whether its log is whole, as of now. Needs clock and name, and `fields`: e, h and l of the row.
--
-- KEYS[1]  row, a hash, its first fields first, for a small hash is searched from its front:
--          e  when it was begun, and the epoch
--          h  the head: see HEAD; then the id of the newest entry and the pinned positions
--          l  the lease: when it was taken, until when, the token; empty when it was given back
--          m  when it was deleted last, and the mark; x the epochs that deletes ended, each with when
--          t<turn>  where a turn stands; v<chunk>  which of 64 positions are out of sight
-- KEYS[2]  log, a list: the entry at position n has index n - 1 - base
-- KEYS[3]  the owner's index, for a verb that writes it, where it is in the same database
--
-- Two keys and no third: while a cluster moves a slot it answers a call only when all its keys are there, or none.
-- Times are microseconds since 1970 by the server's clock.
--
-- Lua makes the functions of a script anew for each call. So a file that is needed once in a script is no function, and a verb
-- includes what most calls do not need inside the block that needs it.

local row, log, index = KEYS[1], KEYS[2], KEYS[3]
local session = index and sub(row, #index + 3, -2)  -- "convmem:c:{tenant/owner/session}" behind "convmem:o:tenant/owner"
local TOMBSTONE_MS = 2592000000    -- TOMBSTONE_LIFE of stores/base.py
local HEAD = '>BI7I7I4I4I4I4I4I4'

local length = call('LLEN', log)
local epoch, id, pinned = '', '', ''
local has_mark, updated, expires, n, turns, start, base = 0, 0, 0, 0, 0, 0, 0
local veil, joined = 0, 0  -- the last position that is out of sight, and the last whose entry goes on with the turn of the one before
local mark, deleted, ended = '', 0, ''
if fields[1] then
  epoch = sub(fields[1], 8)
  local at
  has_mark, updated, expires, n, turns, start, base, veil, joined, at = unpacked(HEAD, fields[2])
  id, at = name(fields[2], at)
  pinned = sub(fields[2], at)
end
if has_mark == 1 or not fields[1] then
  local tomb = call('HMGET', row, 'm', 'x')
  if tomb[1] then deleted, mark, ended = unpacked('>I7', tomb[1]), sub(tomb[1], 8), tomb[2] or '' end
end

local expired = expires > 0 and now >= expires
local emptied = expired and length == 0
local last_epoch = epoch
if epoch ~= '' and length ~= n - base and not emptied then  -- the server evicted half of it
  epoch, id, pinned, expired = '', '', '', false
  updated, expires, n, turns, start, base, veil, joined = 0, 0, 0, 0, 0, 0, 0, 0
end
local tip = epoch == '' and mark or id  -- what stands at the end: the newest entry, or the mark of the newest delete

local held, taken, till = '', 0, 0
local lease = fields[3] or ''
if lease ~= '' then
  taken, till = unpacked('>I7I7', lease)
  if now < till then held = sub(lease, 15) end
end

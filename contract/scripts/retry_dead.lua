#!lua
-- Puts a dead letter back onto the bulk lane, as a new request that passed the entrance.
--
-- KEYS  1 dead letters, 2 bulk stream, 3 rows of bulk, 4 counts, 5 reply key of the request's own id,
--       6 reply key of a fresh id
-- ARGV  1 id of the letter, 2 rows, 3 seconds a pending state is kept,
--       4 payload with its own id ('' where it has none that can be used again), 5 state (as in the entrance),
--       6 payload with the fresh id, 7 field of the payloads
-- Answers {entry id, 1 where it has its own id again, else 0}, or nothing where the letter is gone.
--
-- Its own id is taken where nothing is remembered of it; as long as a reply is, the lane would take it for a duplicate.
redis.call('XLEN', KEYS[2])
redis.call('GET', KEYS[3])
redis.call('HLEN', KEYS[4])
redis.call('STRLEN', KEYS[5])
redis.call('STRLEN', KEYS[6])
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then
  return false
end
local own = ARGV[4] ~= '' and redis.call('EXISTS', KEYS[5]) == 0
local id = redis.call('XADD', KEYS[2], '*', ARGV[7], own and ARGV[4] or ARGV[6])
redis.call('SET', own and KEYS[5] or KEYS[6], ARGV[5] .. '\26' .. string.char(#id) .. id, 'EX', ARGV[3])
redis.call('INCRBY', KEYS[3], ARGV[2])
redis.call('HINCRBY', KEYS[4], 'accepted', 1)
redis.call('XDEL', KEYS[1], ARGV[1])
return {id, own and 1 or 0}

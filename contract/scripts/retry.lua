#!lua flags=allow-oom
-- Takes the oldest entry of a lane whose lease has run out, for an attempt alone; one in the pool at a time.
--
-- KEYS  1 lane stream, 2 crashes, 3 lone attempt
-- ARGV  1 group, 2 this consumer, 3 lease in ms, 4 crashes at which an entry is not tried again
-- Answers nothing, or {entry id, fields, crashes before this attempt, deliveries}.
--
-- The crash count goes up before the attempt, since a dead process can't raise it; the exit takes it away.
-- An id of one lane may be one of the other too: crashes and the lone attempt name the lane with it.
local lane = string.sub(KEYS[1], -5) == ':bulk' and 'bulk ' or ''
redis.call('HLEN', KEYS[2])
if redis.call('EXISTS', KEYS[3]) == 1 then
  return false
end
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', 1)
if held.err or #held == 0 then
  return false
end
local id, deliveries = held[1][1], held[1][4]
local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], id)
if #claimed == 0 or not claimed[1] then
  -- The entry was deleted under its group; XCLAIM has dropped it from the pending list.
  return {id}
end
local crashes = tonumber(redis.call('HGET', KEYS[2], lane .. id) or '0')
if crashes < tonumber(ARGV[4]) then
  redis.call('HINCRBY', KEYS[2], lane .. id, 1)
end
redis.call('SET', KEYS[3], lane .. id, 'PX', ARGV[3])
return {id, claimed[1][2], crashes, deliveries + 1}

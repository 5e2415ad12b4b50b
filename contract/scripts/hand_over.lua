#!lua flags=allow-oom
-- Gives the entries of a consumer that is known to be dead back to the pool, and removes it once it holds nothing.
--
-- KEYS  1 lane stream, 2 lone attempt
-- ARGV  1 group, 2 the dead consumer, 3 who holds them until a worker claims them, 4 how many at most
-- Answers how many were handed over; as many as asked for: call again.
--
-- Deleting a consumer throws away what it holds, so both happen in one step.
-- An id of one lane may be one of the other too: crashes and the lone attempt name the lane with it.
local lane = string.sub(KEYS[1], -5) == ':bulk' and 'bulk ' or ''
local lone = redis.call('GET', KEYS[2])
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], ARGV[2])
if held.err then
  return 0
end
for _, entry in ipairs(held) do
  -- An idle time far above any lease: they can be claimed at once.
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, entry[1], 'IDLE', 86400000, 'JUSTID')
  if lone == lane .. entry[1] then
    redis.call('DEL', KEYS[2])
  end
end
if #held < tonumber(ARGV[4]) then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return #held

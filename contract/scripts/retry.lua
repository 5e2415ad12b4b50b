#!lua flags=allow-oom
-- Takes the oldest entry of a lane whose lease has run out, for an attempt alone; one in the pool at a time.
--
-- KEYS  1 lane stream, 2 crashes, 3 lone attempt
-- ARGV  1 group, 2 this consumer, 3 lease in ms, 4 crashes at which an entry is not tried again
-- Answers nothing, or {entry id, fields, who tried it alone before and was not seen to live on, deliveries}.
--
-- A dead process can't write down its own death, so this consumer's name goes in before the attempt; the exit takes all
-- names away, and give_back this one where the process outlived an attempt that came to nothing. Who calls this lives:
-- its own name, of an attempt whose answer was lost, does not count.
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
local mark, names = lane .. id, {}
for name in string.gmatch(redis.call('HGET', KEYS[2], mark) or '', '%S+') do
  if name ~= ARGV[2] then
    names[#names + 1] = name
  end
end
local before = table.concat(names, ' ')
if #names < tonumber(ARGV[4]) then
  names[#names + 1] = ARGV[2]
end
redis.call('HSET', KEYS[2], mark, table.concat(names, ' '))
redis.call('SET', KEYS[3], mark, 'PX', ARGV[3])
return {id, claimed[1][2], before, deliveries + 1}

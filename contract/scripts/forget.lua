#!lua flags=allow-oom
-- Removes the consumers of one lane that hold nothing and have not been heard of for long.
--
-- KEYS  1 lane stream
-- ARGV  1 group, 2 silence in ms
-- Answers how many were removed.
--
-- Deleting a consumer throws away what it holds, so looking and deleting happen in one step. One that only had nothing
-- to do is made anew by its next read.
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then
  return 0
end
local gone = 0
for _, flat in ipairs(consumers) do
  local consumer = {}
  for place = 1, #flat, 2 do
    consumer[flat[place]] = flat[place + 1]
  end
  if consumer['pending'] == 0 and consumer['idle'] >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer['name'])
    gone = gone + 1
  end
end
return gone

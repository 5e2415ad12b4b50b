#!lua flags=allow-oom
-- Takes a consumer's lone attempts on one model back, which came to nothing while its process lives: none is a crash.
--
-- KEYS  1 requests, 2 bulk, 3 crashes, 4 lone attempt
-- ARGV  1 group, 2 this consumer
-- Answers how many there were.
--
-- A consumer tries one entry at a time, and calls this when it tries none: whatever bears its name is over. So it may be
-- called again where an answer was lost, and needs no id where it was the answer of `retry` that was.
-- Who holds the entry does not change: it is tried again when its lease is over.
local tried = redis.call('HGETALL', KEYS[3])
local lone = redis.call('GET', KEYS[4])
local given = 0
for place = 1, #tried, 2 do
  local mark, names, own = tried[place], {}, false
  for name in string.gmatch(tried[place + 1], '%S+') do
    if name == ARGV[2] then
      own = true
    else
      names[#names + 1] = name
    end
  end
  if own then
    given = given + 1
    if #names > 0 then
      redis.call('HSET', KEYS[3], mark, table.concat(names, ' '))
    else
      redis.call('HDEL', KEYS[3], mark)
    end
    if lone == mark then
      -- Another's attempt on the same entry goes on.
      local bulk = string.sub(mark, 1, 5) == 'bulk '
      local id = bulk and string.sub(mark, 6) or mark
      local held = redis.pcall('XPENDING', bulk and KEYS[2] or KEYS[1], ARGV[1], id, id, 1)
      if held.err or #held == 0 or held[1][2] == ARGV[2] then
        redis.call('DEL', KEYS[4])
      end
    end
  end
end
return given

#!lua flags=allow-oom
-- The only way out of a lane, for every entry, whatever happened to it.
--
-- KEYS  1 requests, 2 bulk, 3 events, 4 counts, 5 rows of requests, 6 rows of bulk, 7 crashes, 8 dead letters,
--       9 lone attempt, then one reply key for each item
-- ARGV  1 group, 2 prefix of the replies channels, 3 the events' header, then for each item
--       gate ('finish', 'withdraw' or 'copy'), lane (1 or 2), entry id, rows, event,
--       seconds the reply is kept ('' deletes it), state with the reply, gateway ('' wakes nobody), wake,
--       reason of the dead letter ('' for none)
-- Answers for each item 1 where this call completed it, 0 where somebody else had.
--
-- The gate is what makes a redelivered entry one reply and one event: only the call whose XACK answers 1 goes on.
-- A copy, of an entry that left before, touches nothing but events and counts: it always passes and wakes nobody.
local WIDTH = 10
local items = (#ARGV - 3) / WIDTH
-- So many ids can be passed to one call: more would fail when there are writes already.
local MOST = 4096
if items ~= math.floor(items) or items > MOST or #KEYS ~= 9 + items then
  return redis.error_reply('ERR exit: ' .. #KEYS .. ' keys and ' .. #ARGV .. ' arguments do not fit together')
end
redis.call('XLEN', KEYS[1])
redis.call('XLEN', KEYS[2])
redis.call('XLEN', KEYS[3])
redis.call('HLEN', KEYS[4])
redis.call('GET', KEYS[5])
redis.call('GET', KEYS[6])
local crashes = redis.call('HLEN', KEYS[7])
redis.call('XLEN', KEYS[8])
local lone = redis.call('GET', KEYS[9])

local group, answers, events, rows, wakes, copies = ARGV[1], {}, {}, {0, 0}, {}, 0
-- Deleted all at once at the end: each call of a command costs more than what it does for one entry.
local finished = {{}, {}}

for item = 1, items do
  local a = 3 + (item - 1) * WIDTH
  local lane, id = tonumber(ARGV[a + 2]), ARGV[a + 3]
  local stream, passed = KEYS[lane], false
  -- Crashes and the lone attempt: an id of one lane may be one of the other too.
  local mark = lane == 1 and id or 'bulk ' .. id
  if ARGV[a + 1] == 'copy' then
    answers[item] = 1
    events[#events + 1] = ARGV[a + 5]
    copies = copies + 1
  elseif ARGV[a + 1] == 'finish' then
    passed = redis.call('XACK', stream, group, id) == 1
    if passed then
      if ARGV[a + 10] ~= '' then
        local entry = redis.call('XRANGE', stream, id, id)[1]
        -- One name for each process that ended with it.
        local _, ended = string.gsub(redis.call('HGET', KEYS[7], mark) or '', '%S+', '')
        redis.call('XADD', KEYS[8], '*', 'reason', ARGV[a + 10], 'entry_id', id, 'lane', lane == 1 and 'requests' or 'bulk',
          'crashes', ended,
          'field', entry and entry[2][1] or '', 'body', entry and entry[2][2] or '')
      end
      finished[lane][#finished[lane] + 1] = id
    end
  else
    -- Without a group nobody can have read it.
    local held = redis.pcall('XPENDING', stream, group, id, id, 1)
    passed = (held.err or #held == 0) and redis.call('XDEL', stream, id) == 1
  end
  if passed then
    answers[item] = 1
    local reply = KEYS[9 + item]
    if ARGV[a + 6] == '' then
      redis.call('DEL', reply)
    else
      redis.call('SET', reply, ARGV[a + 7], 'EX', ARGV[a + 6])
    end
    events[#events + 1] = ARGV[a + 5]
    rows[lane] = rows[lane] + tonumber(ARGV[a + 4])
    if crashes > 0 then
      redis.call('HDEL', KEYS[7], mark)
    end
    if lone == mark then
      redis.call('DEL', KEYS[9])
    end
    local gateway = ARGV[a + 8]
    if gateway ~= '' then
      local wake = wakes[gateway]
      if not wake then
        wake = {}
        wakes[gateway] = wake
      end
      wake[#wake + 1] = ARGV[a + 9]
    end
  elseif not answers[item] then
    answers[item] = 0
  end
end

for lane = 1, 2 do
  if #finished[lane] > 0 then
    redis.call('XDEL', KEYS[lane], unpack(finished[lane]))
  end
end
if #events > 0 then
  -- The running number counts events, so that the sink sees when one it never got is gone.
  local number = redis.call('HINCRBY', KEYS[4], 'completed', #events)
  if copies > 0 then
    redis.call('HINCRBY', KEYS[4], 'copies', copies)
  end
  redis.call('XADD', KEYS[3], '*', 'n', number, 'pb', ARGV[3] .. table.concat(events))
  for lane = 1, 2 do
    if rows[lane] > 0 and redis.call('DECRBY', KEYS[4 + lane], rows[lane]) < 0 then
      redis.call('SET', KEYS[4 + lane], 0)
    end
  end
  for gateway, wake in pairs(wakes) do
    redis.call('SPUBLISH', ARGV[2] .. gateway, table.concat(wake))
  end
end
return answers

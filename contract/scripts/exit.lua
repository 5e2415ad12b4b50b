#!lua flags=allow-oom
-- The only way out of a lane, for every entry, whatever happened to it.
--
-- KEYS  1 requests, 2 bulk, 3 events, 4 counts, 5 rows of requests, 6 rows of bulk, 7 crashes, 8 dead letters,
--       9 lone attempt, then one reply key for each item
-- ARGV  1 group, 2 prefix of the replies channels, 3 the events' header, then runs of items that leave in the same way:
--       gate ('finish', 'withdraw' or 'copy'), lane (1 or 2), rows, seconds the reply is kept ('' deletes it),
--       gateway ('' wakes nobody), reason of the dead letter ('' for none), how many items,
--       their events joined, their wakes joined, then the id of each, then the state with the reply of each
--       ('' where it is not kept)
-- Answers for each item 1 where this call completed it, 0 where somebody else had; nothing where it completed all.
--
-- The gate is what makes a redelivered entry one reply and one event. Of a run whose entries are all held, all pass.
-- Where only some are, those pass that still stand in the lane: whoever completed the others has deleted them.
-- A copy, of an entry that left before, touches nothing but events and counts: it always passes and wakes nobody.
--
-- What is the same for all, or goes on as it came, is one argument for all: each costs more than its bytes.
local HEAD = 9
-- So many ids can be passed to one call: more would fail when there are writes already.
local MOST = 4096
local items, last = 0, 3
while last + HEAD < #ARGV do
  local count = tonumber(ARGV[last + 7])
  if not count or count < 1 then
    break
  end
  items, last = items + count, last + HEAD + 2 * count
end
if last ~= #ARGV or items > MOST or #KEYS ~= 9 + items then
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

local group = ARGV[1]
local answers, events, rows, wakes, left, copies = {}, {}, {0, 0}, {}, 0, 0

-- Which of a run's entries this call completes: all (true), none (false), or a table by place.
local function passes(gate, stream, ids)
  if gate == 'copy' then
    return true
  end
  local passed = {}
  if gate == 'withdraw' then
    for place, id in ipairs(ids) do
      -- Without a group nobody can have read it.
      local held = redis.pcall('XPENDING', stream, group, id, id, 1)
      passed[place] = (held.err or #held == 0) and redis.call('XDEL', stream, id) == 1
    end
    return passed
  end
  local acked = redis.call('XACK', stream, group, unpack(ids))
  if acked == 0 or acked == #ids then
    return acked > 0
  end
  for place, id in ipairs(ids) do
    -- Only the first time, where one stands here twice.
    passed[place] = not passed[id] and #redis.call('XRANGE', stream, id, id) == 1
    passed[id] = true
  end
  return passed
end

-- Messages that were joined, apart again: a tag of one byte, the length in base 128, the rest.
local function apart(joined, passed)
  local at, kept, place = 1, {}, 0
  while at <= #joined do
    local size, shift, next = 0, 1, at + 1
    local byte = string.byte(joined, next)
    while byte > 127 do
      size, shift, next = size + (byte - 128) * shift, shift * 128, next + 1
      byte = string.byte(joined, next)
    end
    next = next + size + byte * shift
    place = place + 1
    if passed[place] then
      kept[#kept + 1] = string.sub(joined, at, next)
    end
    at = next + 1
  end
  return table.concat(kept)
end

local function bury(stream, lane, id, mark, reason)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  -- One name for each process that ended with it.
  local _, ended = string.gsub(redis.call('HGET', KEYS[7], mark) or '', '%S+', '')
  redis.call('XADD', KEYS[8], '*', 'reason', reason, 'entry_id', id, 'lane', lane == 1 and 'requests' or 'bulk',
    'crashes', ended,
    'field', entry and entry[2][1] or '', 'body', entry and entry[2][2] or '')
end

local a, reply = 3, 9
while a < #ARGV do
  local gate, lane, each, seconds, gateway, reason = unpack(ARGV, a + 1, a + 6)
  local count, joined, wake = tonumber(ARGV[a + 7]), ARGV[a + 8], ARGV[a + 9]
  a, lane = a + HEAD, tonumber(lane)
  local stream, ids = KEYS[lane], {unpack(ARGV, a + 1, a + count)}
  local passed = passes(gate, stream, ids)
  local whole, completed = passed == true, 0
  for place = 1, count do
    local done = whole or passed and passed[place]
    answers[#answers + 1] = done and 1 or 0
    if done then
      completed = completed + 1
      if gate ~= 'copy' then
        -- Crashes and the lone attempt: an id of one lane may be one of the other too.
        local id = ids[place]
        local mark = lane == 1 and id or 'bulk ' .. id
        if reason ~= '' then
          bury(stream, lane, id, mark, reason)
        end
        if seconds == '' then
          redis.call('DEL', KEYS[reply + place])
        else
          redis.call('SET', KEYS[reply + place], ARGV[a + count + place], 'EX', seconds)
        end
        if crashes > 0 then
          redis.call('HDEL', KEYS[7], mark)
        end
        if lone == mark then
          redis.call('DEL', KEYS[9])
        end
      end
    end
  end
  if completed > 0 then
    if gate == 'copy' then
      copies = copies + completed
    elseif gate == 'finish' then
      -- What others completed of these is deleted already.
      redis.call('XDEL', stream, unpack(ids))
    end
    events[#events + 1] = whole and joined or apart(joined, passed)
    rows[lane] = rows[lane] + completed * tonumber(each)
    if gateway ~= '' then
      wakes[gateway] = (wakes[gateway] or '') .. (whole and wake or apart(wake, passed))
    end
  end
  left, a, reply = left + completed, a + 2 * count, reply + count
end

if left > 0 then
  -- The running number counts events, so that the sink sees when one it never got is gone.
  local number = redis.call('HINCRBY', KEYS[4], 'completed', left)
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
    redis.call('SPUBLISH', ARGV[2] .. gateway, wake)
  end
end
if left < items then
  return answers
end

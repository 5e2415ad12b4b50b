#!lua
-- Appends the admitted requests of one event-loop turn to one lane of one model.
--
-- KEYS  1 lane stream, 2 rows counter, 3 counts, then one reply key for each item with a state
-- ARGV  1 seconds a pending state is kept, 2 rows and 3 bound of every item where they are all alike and none has a
--       state, then their payloads; or two that are empty, then for each item
--       payload, rows, state ('' where the gateway made the id: nobody can have sent it before),
--       bound: with more rows than that waiting, its own among them, it would be answered too late
-- Answers the entries' ids in one string with a space between them where all were appended; else for each item its
--       entry's id, or {'seen', state of the first request}, {'reused'} for another body under the same id,
--       {'full', rows waiting}
--
-- A state starts with the 32 bytes of the body's SHA-256 behind a two-byte tag; the entry's id is joined to it here.
-- No allow-oom: a full server refuses new work while the exit still runs.
local length = redis.call('XLEN', KEYS[1])
redis.call('HLEN', KEYS[3])
for i = 4, #KEYS do
  redis.call('STRLEN', KEYS[i])
end
local waiting = tonumber(redis.call('GET', KEYS[2]) or '0')
if length == 0 and waiting ~= 0 then
  -- Entries that were deleted by hand, or lost, must not be counted for ever.
  redis.call('SET', KEYS[2], 0)
  waiting = 0
end
local answers = {}
local added, added_rows, reply = 0, 0, 3
local rows, bound, state = tonumber(ARGV[2]), tonumber(ARGV[3]), ''
local alike = rows ~= nil

for i = 4, #ARGV, alike and 1 or 4 do
  local answer, key
  if not alike then
    rows, state, bound = tonumber(ARGV[i + 1]), ARGV[i + 2], tonumber(ARGV[i + 3])
  end
  if state ~= '' then
    reply = reply + 1
    key = KEYS[reply]
    local seen = redis.call('GET', key)
    if seen then
      if string.sub(seen, 3, 34) == string.sub(state, 3, 34) then
        answer = {'seen', seen}
      else
        answer = {'reused'}
      end
    end
  end
  -- When nothing else waits a request may go whatever the bound: it would be computed at once, and a rate that was
  -- measured wrong could never be put right otherwise.
  if not answer and waiting > 0 and waiting + rows > bound then
    answer = {'full', waiting}
  end
  if not answer then
    answer = redis.call('XADD', KEYS[1], '*', 'pb', ARGV[i])
    if key then
      redis.call('SET', key, state .. '\26' .. string.char(#answer) .. answer, 'EX', ARGV[1])
    end
    added = added + 1
    added_rows = added_rows + rows
    waiting = waiting + rows
  end
  answers[#answers + 1] = answer
end

if added > 0 then
  redis.call('INCRBY', KEYS[2], added_rows)
  redis.call('HINCRBY', KEYS[3], 'accepted', added)
end
-- One string is less to write and to read than one for each.
return added == #answers and table.concat(answers, ' ') or answers

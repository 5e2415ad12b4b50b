#!lua
-- Appends the admitted requests of one event-loop turn to one lane of one model.
--
-- KEYS  1 lane stream, 2 rows counter, 3 counts, then one reply key for each item with a state
-- ARGV  1 bound on waiting rows, 2 seconds a pending state is kept, then for each item
--       payload, rows, state ('' where the gateway made the id: nobody can have sent it before)
-- Answers for each item: the entry's id, or {'seen', state of the first request},
--       {'reused'} for another body under the same id, {'full', rows waiting}
--
-- A state starts with the 32 bytes of the body's SHA-256 behind a two-byte tag; the entry's id is joined to it here.
-- No allow-oom: a full server refuses new work while the exit still runs.
redis.call('XLEN', KEYS[1])
redis.call('HLEN', KEYS[3])
local waiting = tonumber(redis.call('GET', KEYS[2]) or '0')
local bound = tonumber(ARGV[1])
local answers = {}
local added, added_rows, reply = 0, 0, 3

for i = 3, #ARGV, 3 do
  local payload, rows, state = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local answer, key
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
  -- One request larger than the bound may go when nothing else waits, or it could never go.
  if not answer and waiting > 0 and waiting + rows > bound then
    answer = {'full', waiting}
  end
  if not answer then
    answer = redis.call('XADD', KEYS[1], '*', 'pb', payload)
    if key then
      redis.call('SET', key, state .. '\26' .. string.char(#answer) .. answer, 'EX', ARGV[2])
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
return answers

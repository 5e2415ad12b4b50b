#!lua flags=allow-oom
-- Claims the request ids of a batch that was read from the bulk lane, which passes no entrance.
--
-- KEYS  1 bulk stream, 2 rows counter, 3 counts, 4 dead letters, 5 crashes, 6 lone attempt, then one reply key for
--       each item
-- ARGV  1 group, 2 seconds a pending state is kept, then for each item
--       entry id, rows, state (as in the entrance, without the entry id),
--       routing: the fields of a state that say which version answers, '' where that can't be said
-- Answers for each item: 1 accepted now, 2 accepted before under this entry (a redelivery, or Submit),
--       0 a duplicate, -1 another body under a known id; the last two are acknowledged and deleted here.
--       0 too where somebody else has completed the entry meanwhile: its reply may be gone, so its id says nothing.
--       Instead of 2 the routing that was recorded at its first read: a redelivery is answered by that version.
redis.call('XLEN', KEYS[1])
redis.call('GET', KEYS[2])
redis.call('HLEN', KEYS[3])
redis.call('XLEN', KEYS[4])
redis.call('HLEN', KEYS[5])
local lone = redis.call('GET', KEYS[6])
for i = 7, #KEYS do
  redis.call('STRLEN', KEYS[i])
end
local answers = {}
local added, added_rows, duplicates = 0, 0, 0

for i = 3, #ARGV, 4 do
  local id, rows, state, routing = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  local key = KEYS[#answers + 7]
  -- Lane and entry id stand behind the hash; see ReplyState.
  local own = string.sub(state, 35) .. '\26' .. string.char(#id) .. id
  local seen = redis.call('GET', key)
  local answer
  -- Without a group nobody holds anything.
  local held = not seen and redis.pcall('XPENDING', KEYS[1], ARGV[1], id, id, 1)
  if held and (held.err or #held == 0) then
    answer = 0
  elseif not seen then
    redis.call('SET', key, string.sub(state, 1, 34) .. own .. routing, 'EX', ARGV[2])
    added = added + 1
    added_rows = added_rows + rows
    answer = 1
  elseif string.sub(seen, 35, 34 + #own) == own then
    answer = 2
    -- Behind the entry id stands the routing, the response where another worker was quicker, or nothing yet.
    local rest = string.sub(seen, 35 + #own)
    if string.byte(rest) == 42 then
      answer = rest
    elseif rest == '' and routing ~= '' then
      redis.call('SET', key, seen .. routing, 'KEEPTTL')
    end
  else
    answer = 0
    if string.sub(seen, 3, 34) ~= string.sub(state, 3, 34) then
      answer = -1
      local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
      if entry then
        redis.call('XADD', KEYS[4], '*', 'reason', 'REQUEST_ID_REUSED', 'entry_id', id, 'lane', 'bulk',
          'crashes', '0', 'field', entry[2][1], 'body', entry[2][2])
      end
    end
    if redis.call('XACK', KEYS[1], ARGV[1], id) == 1 then
      redis.call('XDEL', KEYS[1], id)
      redis.call('HDEL', KEYS[5], 'bulk ' .. id)
      if lone == 'bulk ' .. id then
        redis.call('DEL', KEYS[6])
      end
      duplicates = duplicates + 1
    end
  end
  answers[#answers + 1] = answer
end

if added > 0 then
  redis.call('INCRBY', KEYS[2], added_rows)
  redis.call('HINCRBY', KEYS[3], 'accepted', added)
end
if duplicates > 0 then
  redis.call('HINCRBY', KEYS[3], 'duplicates', duplicates)
end
return answers

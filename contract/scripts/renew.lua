#!lua flags=allow-oom
-- Keeps the lease on the entries of one lane that are still this consumer's own.
--
-- KEYS  1 lane stream, 2 lone attempt
-- ARGV  1 group, 2 this consumer, 3 lease in ms, then entry ids
-- Answers how many are still its own.
--
-- XCLAIM alone would take entries back from whoever claimed them meanwhile.
-- An id of one lane may be one of the other too: crashes and the lone attempt name the lane with it.
local lane = string.sub(KEYS[1], -5) == ':bulk' and 'bulk ' or ''
local own = 0
local lone = redis.call('GET', KEYS[2])
for i = 4, #ARGV do
  -- A server that was flushed has no group any more: then nothing here is its own.
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if not held.err and #held > 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    own = own + 1
    if lone == lane .. ARGV[i] then
      redis.call('PEXPIRE', KEYS[2], ARGV[3])
    end
  end
end
return own

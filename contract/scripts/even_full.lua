#!lua flags=allow-oom
-- One write that must go through where memory is full: without it nobody could be there who makes room.
--
-- KEYS  1 what is written
-- ARGV  the command with its arguments
return redis.call(unpack(ARGV))

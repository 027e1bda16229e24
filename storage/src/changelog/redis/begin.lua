#!lua
-- Begins an epoch. KEYS: marks, log, changes, ages. ARGV: channel, least epoch. Gives the epoch.
local epoch = math.max(tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0) + 1, tonumber(ARGV[2]))
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[1], 'epoch', epoch, 'head', 0, 'applied', 0, 'told', 0, 'trimmed', 0, 'bytes', 0)
redis.call('SPUBLISH', ARGV[1], string.format('A%d 0', epoch))
return epoch

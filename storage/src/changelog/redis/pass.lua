#!lua flags=allow-oom
-- The writer has passed a barrier; who asks within a minute still hears of it. KEYS: passed. ARGV: channel, barrier.
local now = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now[1] - 60)
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1001)
redis.call('ZADD', KEYS[1], now[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], 120)
redis.call('SPUBLISH', ARGV[1], 'B' .. ARGV[2])
return 1

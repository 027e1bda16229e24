#!lua flags=allow-oom
-- A process lives on. KEYS: the living, by when they have to be heard of again; the dead whose records are still there.
-- ARGV: the process, ms until the next sign of life, whether it begins, whether it may declare others dead.
-- Gives whether it still counts as living, and the dead.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[3] ~= '1' and not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return { 0, {} } end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
if ARGV[4] == '1' then
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[1], dead)
    redis.call('SADD', KEYS[2], dead)
  end
end
return { 1, redis.call('SMEMBERS', KEYS[2]) }

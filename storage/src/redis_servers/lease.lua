#!lua flags=allow-oom
-- Takes, renews or gives back a lease. KEYS: the lease. ARGV: holder, ms (0: give it back). Gives whether the holder has it.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1

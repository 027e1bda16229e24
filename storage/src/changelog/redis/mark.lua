#!lua flags=allow-oom
-- Moves a mark on, never back. KEYS: marks. ARGV: channel, name of the mark, epoch, position.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'head', ARGV[2])
local epoch, head, mark = tonumber(held[1] or 0), tonumber(held[2] or 0), tonumber(held[3] or 0)
local to, upto = tonumber(ARGV[3]), tonumber(ARGV[4])
if to < epoch then return 1 end
if to > epoch or upto > head then return 0 end
if upto > mark then
  redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
  if ARGV[2] == 'applied' then redis.call('SPUBLISH', ARGV[1], string.format('A%d %s', epoch, ARGV[4])) end
end
return 1

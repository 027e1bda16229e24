-- Removes some of what a process wrote that is gone, and lets it write no more. KEYS: revision. ARGV: the part's prefix, the owner.
-- Gives how many of its records were looked at; 0: there are no more.
local base, owner = ARGV[1], ARGV[2]
redis.call('SET', base .. 'dead:' .. owner, 1, 'EX', 86400)
local owned = redis.call('SPOP', base .. 'owned:' .. owner, 500)
if #owned == 0 then return 0 end
local revision = string.format('%.0f', redis.call('INCR', KEYS[1]))
for _, name in ipairs(owned) do
  local kind, app, id = string.match(name, '^([^\n]*)\n([^\n]*)\n(.*)$')
  local records = base .. 'records:' .. kind .. ':' .. app
  local held = redis.call('HGET', records, id)
  -- Another process may have written it since.
  if held and string.match(held, '^%d+ (%S*) ') == owner then
    redis.call('HDEL', records, id)
    redis.call('ZREM', base .. 'ids:' .. kind .. ':' .. app, id)
    tell(base, revision, kind, app, id, '-')
  end
end
ring(base)
return #owned

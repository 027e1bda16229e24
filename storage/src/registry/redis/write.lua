-- All writes of a call, or none. KEYS: revision. ARGV: the part's prefix, application, owner (empty: durable records), then of each
-- write: kind, id, `=` or `-`, value, and what has to hold: `*`, `absent` or a revision.
-- A record stands as `REVISION OWNER VALUE`.
local base, app, owner = ARGV[1], ARGV[2], ARGV[3]
if owner ~= '' and redis.call('EXISTS', base .. 'dead:' .. owner) == 1 then return { 'dead' } end
for at = 4, #ARGV, 5 do
  local expected = ARGV[at + 4]
  if expected ~= '*' then
    local held = redis.call('HGET', base .. 'records:' .. ARGV[at] .. ':' .. app, ARGV[at + 1])
    if (held and string.match(held, '^%d+') or 'absent') ~= expected then return { 'conflict', ARGV[at], ARGV[at + 1] } end
  end
end

local revision = string.format('%.0f', redis.call('INCR', KEYS[1]))
for at = 4, #ARGV, 5 do
  local kind, id, value = ARGV[at], ARGV[at + 1], ARGV[at + 3]
  local records, ids = base .. 'records:' .. kind .. ':' .. app, base .. 'ids:' .. kind .. ':' .. app
  if ARGV[at + 2] == '=' then
    redis.call('HSET', records, id, revision .. ' ' .. owner .. ' ' .. value)
    redis.call('ZADD', ids, 0, id)
    if owner ~= '' then redis.call('SADD', base .. 'owned:' .. owner, kind .. '\n' .. app .. '\n' .. id) end
    tell(base, revision, kind, app, id, '=' .. value)
  elseif redis.call('HDEL', records, id) == 1 then
    redis.call('ZREM', ids, id)
    if owner ~= '' then redis.call('SREM', base .. 'owned:' .. owner, kind .. '\n' .. app .. '\n' .. id) end
    tell(base, revision, kind, app, id, '-')
  end
end
ring(base)
return { 'ok' }

#!lua flags=no-writes
-- The entries of changes, and which barriers were passed. KEYS: marks, log, changes, passed. ARGV: how many changes, the changes,
-- the barriers. Gives epoch, head, applied, told, trimmed, a payload or false for each change, 0 or 1 for each barrier.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'head', 'applied', 'told', 'trimmed')
for at = 1, 5 do held[at] = held[at] or '0' end
local count = tonumber(ARGV[1])
local found, passed = {}, {}
for at = 2, count + 1 do
  local position = redis.call('HGET', KEYS[3], ARGV[at])
  local payload = false
  if position then
    local id = held[1] .. '-' .. position
    local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
    payload = entry and entry[2][2] or false
  end
  found[#found + 1] = payload
end
for at = count + 2, #ARGV do passed[#passed + 1] = redis.call('ZSCORE', KEYS[4], ARGV[at]) and 1 or 0 end
return { held[1], held[2], held[3], held[4], held[5], found, passed }

#!lua flags=no-writes
-- A page. KEYS: ids, records. ARGV: from, to (as ZRANGE takes them), most records. Gives ids and records by turns.
local ids = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[2], 'BYLEX', 'LIMIT', 0, ARGV[3])
local found = {}
for from = 1, #ids, 1000 do
  local some = { unpack(ids, from, math.min(from + 999, #ids)) }
  for at, record in ipairs(redis.call('HMGET', KEYS[2], unpack(some))) do
    found[#found + 1] = some[at]
    found[#found + 1] = record
  end
end
return found

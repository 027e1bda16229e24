#!lua
-- Appends entries, if the tail is the one the writer knows. One call, one round trip, whole or not at all.
-- KEYS: marks, log, changes, ages. ARGV: channel, tail epoch, tail position, whether the application is listed, time of the last
-- entry in ms, bytes of all, then of each entry: change id, payload.
local marks, log, changes, ages = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local channel, listed, time, bytes = ARGV[1], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local held = redis.call('HMGET', marks, 'epoch', 'head')
local epoch, head = tonumber(held[1] or 0), tonumber(held[2] or 0)
if epoch ~= tonumber(ARGV[2]) or head ~= tonumber(ARGV[3]) then return { 'fenced', epoch, head } end
if #ARGV == 6 then return { 'ok' } end
if epoch == 0 then
  if listed ~= '1' then return { 'unlisted' } end
  epoch = 1
  redis.call('HSET', marks, 'epoch', 1, 'head', 0, 'applied', 0, 'told', 0, 'trimmed', 0, 'bytes', 0)
end

local first, told, fields = head + 1, {}, {}
for at = 7, #ARGV, 2 do
  head = head + 1
  redis.call('XADD', log, string.format('%d-%.0f', epoch, head), ARGV[at], ARGV[at + 1])
  told[#told + 1] = ARGV[at]
  fields[#fields + 1] = ARGV[at]
  fields[#fields + 1] = string.format('%.0f', head)
  if #fields >= 1000 then
    redis.call('HSET', changes, unpack(fields))
    fields = {}
  end
end
if #fields > 0 then redis.call('HSET', changes, unpack(fields)) end
redis.call('HSET', marks, 'head', string.format('%.0f', head))
redis.call('HINCRBY', marks, 'bytes', bytes)

-- What goes at once when it is too old: stretches of a minute or a MiB. `begun ended last bytes`, times in ms.
local stretch = redis.call('LINDEX', ages, -1)
local begun, size = time, bytes
if stretch then
  local from, before = string.match(stretch, '^(%d+) %d+ %d+ (%d+)$')
  if time - tonumber(from) < 60000 and tonumber(before) < 1048576 then
    begun, size = tonumber(from), before + bytes
    redis.call('RPOP', ages)
  end
end
redis.call('RPUSH', ages, string.format('%.0f %.0f %.0f %.0f', begun, time, head, size))
redis.call('SPUBLISH', channel, string.format('L%d %.0f ', epoch, first) .. table.concat(told))
return { 'ok' }

#!lua flags=allow-oom
-- Lets go of the oldest stretch, if it ended before a time and every entry of it is applied and told.
-- KEYS: marks, log, changes, ages. ARGV: time in ms. Gives whether it went, the bytes held, and when the oldest stretch ended (0: none).
local held = redis.call('HMGET', KEYS[1], 'epoch', 'applied', 'told', 'bytes')
local epoch, bytes = held[1] or '0', tonumber(held[4] or 0)
local settled = math.min(tonumber(held[2] or 0), tonumber(held[3] or 0))
local stretch = redis.call('LINDEX', KEYS[4], 0)
if not stretch then return { 0, bytes, 0 } end
local ended, last, size = string.match(stretch, '^%d+ (%d+) (%d+) (%d+)$')
if tonumber(ended) >= tonumber(ARGV[1]) or tonumber(last) > settled then return { 0, bytes, tonumber(ended) } end

while true do
  local page = redis.call('XRANGE', KEYS[2], '-', epoch .. '-' .. last, 'COUNT', 200)
  if #page == 0 then break end
  local changes = {}
  for _, entry in ipairs(page) do
    local change = entry[2][1]
    -- A change stands once in the log, but a log may have been told of it again.
    if redis.call('HGET', KEYS[3], change) == string.match(entry[1], '%-(%d+)$') then changes[#changes + 1] = change end
  end
  if #changes > 0 then redis.call('HDEL', KEYS[3], unpack(changes)) end
  redis.call('XTRIM', KEYS[2], 'MAXLEN', redis.call('XLEN', KEYS[2]) - #page)
end
redis.call('LPOP', KEYS[4])
bytes = bytes - size
redis.call('HSET', KEYS[1], 'trimmed', last, 'bytes', string.format('%.0f', bytes))
local oldest = redis.call('LINDEX', KEYS[4], 0)
return { 1, bytes, oldest and tonumber(string.match(oldest, '^%d+ (%d+)')) or 0 }

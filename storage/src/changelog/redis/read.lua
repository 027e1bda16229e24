#!lua flags=no-writes
-- A page. KEYS: marks, log. ARGV: epoch, position, most entries, most bytes, the mark up to which to read.
-- Gives epoch, head, applied, told, trimmed, and the payloads.
local held = redis.call('HMGET', KEYS[1], 'epoch', 'head', 'applied', 'told', 'trimmed')
for at = 1, 5 do held[at] = held[at] or '0' end
local since, limit, room = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local upto = ARGV[5] == 'head' and held[2] or held[3]
local found = {}
if held[1] == ARGV[1] and since >= tonumber(held[5]) and since < tonumber(upto) then
  local from = string.format('(%s-%.0f', held[1], since)
  -- Large entries are not loaded by the hundred to be dropped again.
  local step = 16
  while limit > 0 and room > 0 do
    local count = math.min(limit, step)
    local page = redis.call('XRANGE', KEYS[2], from, held[1] .. '-' .. upto, 'COUNT', count)
    for _, entry in ipairs(page) do
      if room <= 0 then break end
      local payload = entry[2][2]
      found[#found + 1] = payload
      room = room - #payload
      limit = limit - 1
      from = '(' .. entry[1]
    end
    if #page < count then break end
    step = math.max(1, math.min(1000, math.floor(room / ((ARGV[4] - room) / #found + 1))))
  end
end
return { held[1], held[2], held[3], held[4], held[5], found }

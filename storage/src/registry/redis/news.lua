#!lua flags=no-writes
-- What was written after a revision. KEYS: revision. ARGV: the part's prefix, the revision, kinds.
-- Gives the revision now, whether something is not held any more, and for each kind with news its name and its entries.
local now = redis.call('GET', KEYS[1]) or '0'
local since = tonumber(ARGV[2])
if tonumber(now) == since then return { now, 0 } end
-- A revision that is lower than before: the server has lost what it confirmed.
if tonumber(now) < since then return { now, 1 } end
local answer = { now, 0 }
for at = 3, #ARGV do
  local trimmed = redis.call('HGET', ARGV[1] .. 'trimmed', ARGV[at])
  if trimmed and tonumber(trimmed) > since then return { now, 1 } end
  local entries = redis.call('XRANGE', ARGV[1] .. 'feed:' .. ARGV[at], string.format('%.0f', since + 1), '+')
  if #entries > 0 then
    answer[#answer + 1] = ARGV[at]
    answer[#answer + 1] = entries
  end
end
return answer

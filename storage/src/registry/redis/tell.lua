-- What every script does that changes records: it tells of each change in the feed of its kind, and rings once.
-- A feed is a stream of the last changes; an entry has the id `REVISION-NUMBER` and one field, `APPLICATION\nID`, with `-` for a removal,
-- `=VALUE`, or `?` where the value is too large to stand twice.
local FEED_LENGTH, FEED_SLACK, LARGE = 8192, 1024, 8192
local told, count = {}, 0

local function tell(base, revision, kind, app, id, news)
  if #news > LARGE then news = '?' end
  redis.call('XADD', base .. 'feed:' .. kind, revision .. '-' .. count, app .. '\n' .. id, news)
  count = count + 1
  told[kind] = (told[kind] or 0) + 1
end

local function ring(base)
  local kinds = {}
  for kind, _ in pairs(told) do
    local feed = base .. 'feed:' .. kind
    local length = redis.call('XLEN', feed)
    if length > FEED_LENGTH + FEED_SLACK then
      -- Who has not read the last one that goes has to read the records anew.
      local going = redis.call('XRANGE', feed, '-', '+', 'COUNT', length - FEED_LENGTH)
      redis.call('HSET', base .. 'trimmed', kind, string.match(going[#going][1], '^(%d+)'))
      redis.call('XTRIM', feed, 'MAXLEN', FEED_LENGTH)
    end
    kinds[#kinds + 1] = kind
  end
  if #kinds > 0 then redis.call('SPUBLISH', base .. 'news', table.concat(kinds, ' ')) end
end

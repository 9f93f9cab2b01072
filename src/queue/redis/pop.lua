-- ARGV: consumer, entries wanted, bytes wanted, largest message, bytes kept of a larger one, reclaim what was idle for
-- so many milliseconds (0: nothing), database, milliseconds that the queue is its.
-- Returns entries, milliseconds until the next delayed id (-1: none), and 1 if there may be more to reclaim.
local consumer, wanted, budget = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local largest, kept, idle = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local out, bytes = {}, 0

local refusal = foreign(ARGV[7])
if refusal then return refusal end
write_when_full()
keep(ARGV[7], ARGV[8])

local function full() return #out >= wanted or bytes >= budget end

-- The name under which a message came first, if `source` is one: a field of a producer's own by that name is not.
local function first_name(source)
  local stream = source and string.match(source, '^(.*)/%d+%-%d+$')
  for _, band in ipairs(BANDS) do
    if stream == STREAMS[band] then return source end
  end
end

local function offer(band, entry, fields)
  local job, id = value(fields, 'job'), value(fields, 'id')
  local origin = STREAMS[band] .. '/' .. entry
  if job then
    origin = first_name(value(fields, 'source')) or origin
    local body = job
    if #body > largest then body = string.sub(body, 1, kept) end
    bytes = bytes + #body
    out[#out + 1] = { 'm', band, entry, origin, string.format('%d', #job), body }
  elseif id and #id == 36 and string.match(id, '^%x+%-%x+%-%x+%-%x+%-%x+$') then
    out[#out + 1] = { 'j', band, entry, id }
  else
    local all = table.concat(fields, '\n')
    local part = string.sub(all, 1, kept)
    bytes = bytes + #part
    out[#out + 1] = { 'o', band, entry, origin, string.format('%d', #all), part }
  end
end

-- Whether an entry's id has a newer entry, which does for both.
local function superseded(band, entry, fields)
  local id = value(fields, 'id')
  local newest = id and not value(fields, 'job') and redis.call('HGET', IDS, id)
  if not newest or newest == band .. ' ' .. entry then return false end
  local b, other = string.match(newest, '^(%a) (%S+)$')
  return STREAMS[b] and #redis.call('XRANGE', STREAMS[b], other, other) > 0
end

for _, band in ipairs(BANDS) do
  local _, refused = last_delivered(STREAMS[band])
  if refused then return refused end
end

-- What the server refuses to move stays where it is.
local time = now()
local due = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', string.format('%.0f', time), 'LIMIT', 0, 500)
for _, id in ipairs(due) do
  local band = redis.call('HGET', DELAYED_BANDS, id)
  if type(add(id, string.upper(band and STREAMS[band] and band or 'n'))) == 'table' then break end
  redis.call('ZREM', DELAYED, id)
  redis.call('HDEL', DELAYED_BANDS, id)
end
local moved = 0
for _ = 1, 500 do
  local body = moved < 67108864 and redis.call('LINDEX', INBOX, -1)
  if not body or type(redis.pcall('XADD', STREAMS.n, '*', 'job', body)) == 'table' then break end
  redis.call('LTRIM', INBOX, 0, -2)
  moved = moved + #body
end

local again = 0
if idle > 0 then
  for _, band in ipairs(BANDS) do
    local stream, cursor = STREAMS[band], '0-0'
    repeat
      if full() then
        again = 1
        break
      end
      -- One at a time: what is claimed must be returned, and an entry may be large.
      local claimed = redis.call('XAUTOCLAIM', stream, GROUP, consumer, idle, cursor, 'COUNT', 1, 'JUSTID')
      cursor = claimed[1]
      for _, entry in ipairs(claimed[2]) do
        local found = redis.call('XRANGE', stream, entry, entry)
        if #found == 0 then
          redis.call('XACK', stream, GROUP, entry)
        elseif superseded(band, entry, found[1][2]) then
          forget(band, entry, '')
        else
          offer(band, entry, found[1][2])
        end
      end
    until cursor == '0-0'
  end
end

for _, band in ipairs(BANDS) do
  while not full() do
    local read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', STREAMS[band], '>')
    if not read then break end
    local entry = read[1][2][1]
    offer(band, entry[1], entry[2])
  end
end

if not full() then
  redis.call('DEL', WAKE)
elseif redis.call('EXISTS', WAKE) == 0 then
  redis.pcall('LPUSH', WAKE, '1')
end

local first = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
local left = -1
if first[2] then left = math.max(0, tonumber(first[2]) - time) end
return { out, left, again }

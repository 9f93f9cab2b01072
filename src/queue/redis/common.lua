-- Comes before every other script.
local GROUP = 'workers'
-- A band's capital letter is its stream of what comes again, which is read before the other.
local STREAMS = { H = KEYS[1], h = KEYS[2], N = KEYS[3], n = KEYS[4], L = KEYS[5], l = KEYS[6] }
local BANDS = { 'H', 'h', 'N', 'n', 'L', 'l' }
local IDS, DELAYED, DELAYED_BANDS = KEYS[7], KEYS[8], KEYS[9]
local INBOX, ASIDE, WAKE, DATABASE = KEYS[10], KEYS[11], KEYS[12], KEYS[13]

-- Lets this script write though the server's memory is full. Redis then refuses what may take memory, but only until a
-- script's first write; this one changes nothing, and is not refused. For scripts that free what they take, or take
-- little: if they were refused, nothing would ever free the memory. Where it fails, so does what follows.
local function write_when_full() redis.pcall('HDEL', IDS, '') end

-- The error for whoever is of another database than the workers that this queue has; nil where there are none such, and
-- for who does not say (an empty name).
local function foreign(database)
  local owner = redis.call('GET', DATABASE)
  if database == '' or not owner or owner == database then return end
  return redis.error_reply('FOREIGN workers of another database have this queue (theirs: ' .. owner .. '; this one: ' ..
    database .. '): give each database a QUEUE_NAME or a Redis of its own')
end

-- Has this queue belong to the database for so many milliseconds. Where that fails, nobody's stays nobody's.
local function keep(database, lasts)
  if database == '' then return end
  if redis.call('GET', DATABASE) == database then
    redis.pcall('PEXPIRE', DATABASE, lasts)
  else
    redis.pcall('SET', DATABASE, database, 'PX', lasts)
  end
end

-- The n-th value after `name` in a flat list of names and values.
local function value(list, name)
  for i = 1, #list, 2 do
    if list[i] == name then return list[i + 1] end
  end
end

-- Whether entry a came after entry b. Both parts have up to 20 digits: too many for Lua's numbers.
local function after(a, b)
  local at, an = string.match(a, '^(%d+)-(%d+)$')
  local bt, bn = string.match(b, '^(%d+)-(%d+)$')
  if at == bt then at, bt = an, bn end
  if #at ~= #bt then return #at > #bt end
  return at > bt
end

local delivered = {}

-- The last entry of a stream that was delivered to anybody. Makes the group where there is none, from the stream's
-- beginning, so that nothing in it is passed over. Or else nil, and the error with which the server refused that.
local function last_delivered(stream)
  if not delivered[stream] then
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    if not groups.err then
      for _, group in ipairs(groups) do
        if value(group, 'name') == GROUP then delivered[stream] = value(group, 'last-delivered-id') end
      end
    end
    if not delivered[stream] then
      local made = redis.pcall('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
      if made.err then return nil, made end
      delivered[stream] = '0-0'
    end
  end
  return delivered[stream]
end

-- Adds an id to a band (a capital: as one that comes again) unless it waits already. One that comes again and waits
-- among the new ones moves. Returns how many were added (0 or 1), or the error with which the server refused it.
local function add(id, band)
  local newest = redis.call('HGET', IDS, id)
  local moved
  if newest then
    local b, entry = string.match(newest, '^(%a) (%S+)$')
    local stream = STREAMS[b]
    local found = stream and redis.call('XRANGE', stream, entry, entry)[1]
    -- A stream that was deleted and made anew in the same millisecond may give the entry's name to another id.
    if found and value(found[2], 'id') == id then
      local last, refused = last_delivered(stream)
      if refused then return refused end
      if after(entry, last) then
        if band == string.lower(band) or b == string.upper(b) then return 0 end
        moved = { stream, entry }
      elseif #redis.call('XPENDING', stream, GROUP, entry, entry, 1) == 0 then
        -- Delivered, and in nobody's hands: it would lie there for ever.
        redis.call('XDEL', stream, entry)
      end
    end
  end
  local _, refused = last_delivered(STREAMS[band])
  if refused then return refused end
  local entry = redis.pcall('XADD', STREAMS[band], '*', 'id', id)
  if type(entry) == 'table' then return entry end
  redis.call('HSET', IDS, id, band .. ' ' .. entry)
  if moved then redis.call('XDEL', moved[1], moved[2]) end
  return 1
end

-- Ends an entry; a newer one of the same id is left alone.
local function forget(band, entry, id)
  local acked = redis.call('XACK', STREAMS[band], GROUP, entry)
  local deleted = redis.call('XDEL', STREAMS[band], entry)
  if id ~= '' and redis.call('HGET', IDS, id) == band .. ' ' .. entry then redis.call('HDEL', IDS, id) end
  return acked + deleted
end

-- Wakes up to n workers that block. The marks mean nothing by themselves, so a lost or needless one does no harm.
local function wake(n)
  for _ = 1, math.min(n, 64) do redis.call('LPUSH', WAKE, '1') end
  if n > 0 then redis.call('LTRIM', WAKE, 0, 63) end
end

-- Milliseconds since 1970.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

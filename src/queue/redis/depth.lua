-- Entries less those in hand. (Not the group's lag: before 7.0 there is none, and later it is unknown at times.)
local depth = redis.call('LLEN', INBOX) + redis.call('ZCOUNT', DELAYED, '-inf', string.format('%.0f', now()))
for _, band in ipairs(BANDS) do
  local waits = redis.call('XLEN', STREAMS[band])
  local groups = redis.pcall('XINFO', 'GROUPS', STREAMS[band])
  if not groups.err then
    for _, group in ipairs(groups) do
      if value(group, 'name') == GROUP then waits = waits - value(group, 'pending') end
    end
  end
  depth = depth + math.max(0, waits)
end
return depth

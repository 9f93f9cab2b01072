-- ARGV: band, entry, id (empty for a message), and source, for each delivery.
-- Returns which messages (1, 2, …) are no longer in their stream.
write_when_full()
local gone, added = {}, 0
for i = 1, #ARGV, 4 do
  local band, entry, id, source = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local stream, again = STREAMS[band], string.upper(band)
  -- The new entry before the end of the old: if the server refuses it, the delivery stays pending.
  local _, result = last_delivered(STREAMS[again])
  if result then
    -- Refused.
  elseif id ~= '' then
    result = add(id, again)
  else
    local found = redis.call('XRANGE', stream, entry, entry)
    local job = found[1] and value(found[1][2], 'job')
    if job then
      result = redis.pcall('XADD', STREAMS[again], '*', 'job', job, 'source', source)
      if type(result) ~= 'table' then result = 1 end
    else
      gone[#gone + 1] = (i + 3) / 4
      result = 0
    end
  end
  if type(result) == 'table' then
    wake(added)
    return result
  end
  added = added + result
  forget(band, entry, id)
end
wake(added)
return gone

-- ARGV: own consumer, milliseconds of silence after which a consumer is dead, where to go on among the ids, database,
-- milliseconds that the queue is its.
-- Returns where to go on.
local refusal = foreign(ARGV[4])
if refusal then return refusal end
write_when_full()
-- A worker that is busy looks for nothing, and the queue is its database's still.
keep(ARGV[4], ARGV[5])
-- A live consumer that was given nothing for so long may be taken for dead (before Redis 7.2, looking in vain does not
-- count as a sign of life). It holds nothing, and is there again with its next delivery.
for _, band in ipairs(BANDS) do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', STREAMS[band], GROUP)
  if not consumers.err then
    for _, consumer in ipairs(consumers) do
      local name = value(consumer, 'name')
      if name ~= ARGV[1] and value(consumer, 'pending') == 0 and value(consumer, 'idle') > tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', STREAMS[band], GROUP, name)
      end
    end
  end
end
-- Bands of ids that wait for their time no more, since somebody else deleted the times.
if redis.call('EXISTS', DELAYED) == 0 then redis.call('UNLINK', DELAYED_BANDS) end
-- Ids whose entries somebody else deleted.
local scan = redis.call('HSCAN', IDS, ARGV[3], 'COUNT', 200)
for i = 1, #scan[2], 2 do
  local band, entry = string.match(scan[2][i + 1], '^(%a) (%d+-%d+)$')
  if not STREAMS[band] or #redis.call('XRANGE', STREAMS[band], entry, entry) == 0 then
    redis.call('HDEL', IDS, scan[2][i])
  end
end
return scan[1]

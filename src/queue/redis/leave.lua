-- ARGV: consumer, database. Forgets it where it holds nothing. Where it was the last, the queue is no database's.
-- Redis 6.2 refuses every XGROUP when it is full.
write_when_full()
local left = 0
for _, band in ipairs(BANDS) do
  local pending = redis.pcall('XPENDING', STREAMS[band], GROUP, '-', '+', 1, ARGV[1])
  if not pending.err and #pending == 0 then redis.call('XGROUP', 'DELCONSUMER', STREAMS[band], GROUP, ARGV[1]) end
  local consumers = redis.pcall('XINFO', 'CONSUMERS', STREAMS[band], GROUP)
  if not consumers.err then left = left + #consumers end
end
if left == 0 and redis.call('GET', DATABASE) == ARGV[2] then redis.call('DEL', DATABASE) end
return 1

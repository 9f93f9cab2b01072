-- ARGV: consumer. Forgets it where it holds nothing.
for _, band in ipairs(BANDS) do
  local pending = redis.pcall('XPENDING', STREAMS[band], GROUP, '-', '+', 1, ARGV[1])
  if not pending.err and #pending == 0 then redis.call('XGROUP', 'DELCONSUMER', STREAMS[band], GROUP, ARGV[1]) end
end
return 1

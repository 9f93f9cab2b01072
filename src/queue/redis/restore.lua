-- ARGV: band, source, body: a message whose entry is gone.
-- It had been accepted, and is in no other place.
write_when_full()
local stream = STREAMS[string.upper(ARGV[1])]
local _, refused = last_delivered(stream)
if refused then return refused end
redis.call('XADD', stream, '*', 'job', ARGV[3], 'source', ARGV[2])
wake(1)
return 1

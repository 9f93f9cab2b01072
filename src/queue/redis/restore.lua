-- ARGV: band, source, body: a message whose entry is gone.
local _, refused = last_delivered(STREAMS[ARGV[1]])
if refused then return refused end
redis.call('XADD', STREAMS[ARGV[1]], '*', 'job', ARGV[3], 'source', ARGV[2])
wake(1)
return 1

-- ARGV: band, entry, source, why, size, sha256, records kept.
-- The note before the end of the entry: if the server refuses it, the delivery stays pending.
local note =
  redis.call('XADD', ASIDE, 'MAXLEN', ARGV[7], '*', 'source', ARGV[3], 'why', ARGV[4], 'size', ARGV[5], 'sha256', ARGV[6])
if forget(ARGV[1], ARGV[2], '') > 0 then return 1 end
-- An entry that somebody else has dealt with is not noted twice.
redis.call('XDEL', ASIDE, note)
return 0

-- ARGV: band, entry, source, why, size, sha256, records kept.
-- As `write_when_full`; and where the notes' key is of another kind, the entry stays.
redis.call('XDEL', ASIDE, '0-0')
-- An entry that somebody else has dealt with is not noted twice.
if forget(ARGV[1], ARGV[2], '') == 0 then return 0 end
redis.call('XADD', ASIDE, 'MAXLEN', ARGV[7], '*', 'source', ARGV[3], 'why', ARGV[4], 'size', ARGV[5], 'sha256', ARGV[6])
return 1

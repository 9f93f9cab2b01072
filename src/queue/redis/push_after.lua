-- ARGV: id, band, delay in milliseconds, database.
local refusal = foreign(ARGV[4])
if refusal then return refusal end
redis.call('ZADD', DELAYED, string.format('%.0f', now() + tonumber(ARGV[3])), ARGV[1])
redis.call('HSET', DELAYED_BANDS, ARGV[1], ARGV[2])
return 1

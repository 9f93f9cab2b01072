-- ARGV: band, entry, and id (empty for a message), for each delivery.
for i = 1, #ARGV, 3 do forget(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
return 1

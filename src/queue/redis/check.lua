-- ARGV: database.
return foreign(ARGV[1]) or 1

-- ARGV: database, and a band and an id, for each id.
local refusal = foreign(ARGV[1])
if refusal then return refusal end
local added = 0
for i = 2, #ARGV, 2 do
  local n = add(ARGV[i + 1], ARGV[i])
  if type(n) == 'table' then
    wake(added)
    return n
  end
  added = added + n
end
wake(added)
return added
